//! Rules about code: unsafe, what the library may never call, environment, length of functions.
//!
//! Each rule is a function from a source to what breaks it, and is seen failing on a bad snippet in
//! the tests below. Tables say where a rule gives way, and why.

use super::source::{Finding, Source, matching_brace, words};

/// Where `unsafe` may stand, and how often in one file (`None`: as often as it must).
const UNSAFE_ROOMS: &[(&str, Option<usize>)] = &[
    ("src/capi/", None),
    ("src/backend/cpu/fast.rs", None),
    ("src/backend/cpu/fast/", None),
    ("src/backend/cuda/", None),
    // The one call that maps a file.
    ("src/checkpoint/", Some(1)),
    // The two that ask what is in the page cache.
    ("src/reader/", Some(2)),
    // Tests and benches call the C ABI as a C program would.
    ("tests/", None),
    ("benches/", None),
];

/// The one file that may read the environment.
const ENVIRONMENT_ROOM: &str = "src/engine/open/mod.rs";

/// What a library inside somebody else's process never does.
const FORBIDDEN_CALLS: &[(&str, &str)] = &[
    ("println!", "the library prints nothing"),
    ("eprintln!", "the library prints nothing"),
    ("print!", "the library prints nothing"),
    ("eprint!", "the library prints nothing"),
    ("dbg!", "the library prints nothing"),
    ("stdout()", "the library prints nothing"),
    ("stderr()", "the library prints nothing"),
    ("process::exit", "the library never ends the process"),
    ("process::abort", "the library never ends the process"),
    ("abort()", "the library never ends the process"),
    ("todo!", "nothing is left half-made"),
    ("unimplemented!", "nothing is left half-made"),
];

const ENVIRONMENT_CALLS: &[&str] =
    &["env::var", "env::var_os", "env::vars", "env::vars_os", "env::set_var", "getenv"];

/// Longest function, from its first line to its closing brace.
const FUNCTION_LINES: usize = 70;

/// Lines that may stand between an `unsafe` and its SAFETY comment: an attribute, and the beginning
/// of the statement.
const STATEMENT_LINES: usize = 2;

pub(crate) fn unsafe_in_its_rooms(source: &Source) -> Vec<Finding> {
    let places: Vec<usize> = rust_words(source, "unsafe");
    let room = UNSAFE_ROOMS.iter().find(|(room, _)| source.path.starts_with(room));
    let allowed = match room {
        Some((_, None)) => places.len(),
        Some((_, Some(limit))) => *limit,
        None => 0,
    };
    let message = "`unsafe` outside its rooms";
    places.into_iter().skip(allowed).map(|offset| source.finding(offset, message)).collect()
}

pub(crate) fn unsafe_says_why(source: &Source) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let does_something = |offset: &usize| {
        let rest = source.code[offset + "unsafe".len()..].trim_start();
        rest.starts_with('{') || rest.starts_with("impl")
    };
    rust_words(source, "unsafe")
        .into_iter()
        .filter(does_something)
        .filter(|offset| !is_explained(&lines[..source.line(*offset) - 1]))
        .map(|offset| source.finding(offset, "`unsafe` without a SAFETY comment above it"))
        .collect()
}

/// Do the lines above an `unsafe` end with a SAFETY comment of its own?
fn is_explained(above: &[&str]) -> bool {
    let mut rest = above.iter().rev().map(|line| line.trim_start()).peekable();
    for _ in 0..STATEMENT_LINES {
        // The comment above another `unsafe` is that one's.
        rest.next_if(|line| !line.starts_with("//") && !line.contains("unsafe"));
    }
    rest.take_while(|line| line.starts_with("//")).any(|line| line.contains("SAFETY:"))
}

pub(crate) fn forbidden_calls(source: &Source) -> Vec<Finding> {
    let library = source.is_library();
    FORBIDDEN_CALLS
        .iter()
        .filter(|_| library)
        .flat_map(|(call, why)| {
            words(&source.code, call)
                .map(move |offset| source.finding(offset, format!("`{call}`: {why}")))
        })
        .collect()
}

pub(crate) fn environment(source: &Source) -> Vec<Finding> {
    if !source.is_library() || source.path == ENVIRONMENT_ROOM {
        return Vec::new();
    }
    ENVIRONMENT_CALLS
        .iter()
        .flat_map(|call| words(&source.code, call))
        .map(|at| source.finding(at, format!("the environment is read in {ENVIRONMENT_ROOM} only")))
        .collect()
}

pub(crate) fn foreign_functions(source: &Source) -> Vec<Finding> {
    if !source.is_library() || source.path.starts_with("src/capi/") {
        return Vec::new();
    }
    let is_abi = |offset: &usize| {
        let rest = source.code[offset + "extern".len()..].trim_start();
        !rest.starts_with("crate")
    };
    words(&source.code, "extern")
        .filter(is_abi)
        .map(|offset| source.finding(offset, "`extern` functions belong to src/capi/"))
        .collect()
}

pub(crate) fn short_functions(source: &Source) -> Vec<Finding> {
    let bodies = if source.has_extension(&["rs"]) {
        rust_functions(&source.code_with_tests)
    } else if source.has_extension(&["c", "cpp", "h", "hpp", "cu", "cuh"]) {
        c_blocks(&source.code)
    } else {
        Vec::new()
    };
    let mut findings = Vec::new();
    for (start, end) in bodies {
        let lines = source.line(end) - source.line(start) + 1;
        if lines > FUNCTION_LINES {
            let message = format!("{lines} lines in one function; {FUNCTION_LINES} are the limit");
            findings.push(source.finding(start, message));
        }
    }
    findings
}

/// Kernels are launched before the one in front has ended: one that does not wait for it reads what
/// is not written yet, in a few rows, sometimes.
pub(crate) fn kernels_wait(source: &Source) -> Vec<Finding> {
    let is_ours = source.path.starts_with("cuda/") && source.has_extension(&["cu"]);
    let has = |text| source.code.contains(text);
    if !is_ours || has("wait_for_predecessor();") || !has("__global__") {
        return Vec::new();
    }
    vec![source.finding(0, "its kernels never call wait_for_predecessor()")]
}

fn rust_words(source: &Source, word: &str) -> Vec<usize> {
    if !source.has_extension(&["rs"]) {
        return Vec::new();
    }
    words(&source.code, word).collect()
}

/// Start of each function's `fn`, and its closing brace.
fn rust_functions(code: &str) -> Vec<(usize, usize)> {
    let is_name = |c: char| c.is_alphabetic() || c == '_';
    words(code, "fn")
        .filter(|offset| code[offset + 2..].trim_start().starts_with(is_name))
        .filter_map(|offset| {
            let stop = offset + code[offset..].find(['{', ';'])?;
            let is_body = code.as_bytes()[stop] == b'{';
            Some((offset, is_body.then(|| matching_brace(code.as_bytes(), stop))??))
        })
        .collect()
}

/// Every block of C or C++ that follows a `)`: functions, and the loops and branches inside them,
/// which are shorter. Classes and namespaces have no `)` and so no limit.
fn c_blocks(code: &str) -> Vec<(usize, usize)> {
    code.match_indices('{')
        .filter(|(open, _)| {
            let line = code[..*open].rsplit('\n').next().unwrap_or("");
            line.contains(')')
        })
        .filter_map(|(open, _)| Some((open, matching_brace(code.as_bytes(), open)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn unsafe_outside_its_rooms_is_found() {
        let text = "// SAFETY: the caller's.\nlet x = unsafe { *p };\n";
        assert_eq!(found(unsafe_in_its_rooms, "src/engine/mod.rs", text), 1);
        assert_eq!(found(unsafe_in_its_rooms, "src/backend/cpu/mod.rs", text), 1);
        assert_eq!(found(unsafe_in_its_rooms, "src/capi/mod.rs", text), 0);
        assert_eq!(found(unsafe_in_its_rooms, "src/checkpoint/mod.rs", text), 0);
        assert_eq!(found(unsafe_in_its_rooms, "src/checkpoint/mod.rs", &text.repeat(2)), 1);
        assert_eq!(found(unsafe_in_its_rooms, "src/engine/mod.rs", "// unsafe\n"), 0);
    }

    #[test]
    fn unexplained_unsafe_is_found() {
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", "let x = unsafe { *p };\n"), 1);
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", "unsafe impl Send for A {}\n"), 1);
        let far = format!("// SAFETY: too far.\n{}unsafe {{ f() }}\n", "g();\n".repeat(3));
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", &far), 1);
        let shared = "// SAFETY: of the first.\nunsafe { f() }\nunsafe { g() }\n";
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", shared), 1);
        let near = "// SAFETY: checked above.\nlet x =\n    unsafe { *p };\n";
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", near), 0);
        let declared = "#[unsafe(no_mangle)]\nunsafe extern \"C\" fn f() {}\n";
        assert_eq!(found(unsafe_says_why, "src/capi/mod.rs", declared), 0);
    }

    #[test]
    fn printing_and_ending_the_process_are_found() {
        for call in ["println!(\"a\")", "std::process::exit(1)", "std::io::stderr()", "todo!()"] {
            let text = format!("fn f() {{ {call}; }}\n");
            assert_eq!(found(forbidden_calls, "src/kv.rs", &text), 1, "{call}");
            assert_eq!(found(forbidden_calls, "tests/kv.rs", &text), 0, "{call}");
        }
        assert_eq!(found(forbidden_calls, "src/kv.rs", "let a = \"println!\"; // dbg!\n"), 0);
    }

    #[test]
    fn strayed_environment_reads_are_found() {
        let text = "let a = std::env::var(\"A\");\n";
        assert_eq!(found(environment, "src/kv.rs", text), 1);
        assert_eq!(found(environment, ENVIRONMENT_ROOM, text), 0);
        assert_eq!(found(environment, "src/kv.rs", "let a = env!(\"CARGO_PKG_NAME\");\n"), 0);
    }

    #[test]
    fn strayed_extern_functions_are_found() {
        let text = "pub extern \"C\" fn f() {}\n";
        assert_eq!(found(foreign_functions, "src/engine/mod.rs", text), 1);
        assert_eq!(found(foreign_functions, "src/capi/mod.rs", text), 0);
    }

    #[test]
    fn long_functions_are_found() {
        let body = |lines: usize| "    f();\n".repeat(lines);
        let rust =
            |lines| format!("impl A {{\n    pub fn f<T>(a: T)\n    {{\n{}}}\n}}\n", body(lines));
        assert_eq!(found(short_functions, "src/a.rs", &rust(FUNCTION_LINES - 3)), 0);
        assert_eq!(found(short_functions, "src/a.rs", &rust(FUNCTION_LINES - 2)), 1);
        let inside_tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", rust(FUNCTION_LINES));
        assert_eq!(found(short_functions, "src/a.rs", &inside_tests), 1);
        let c = |lines| format!("namespace a {{\nint f(int b) {{\n{}}}\n}}\n", body(lines));
        assert_eq!(found(short_functions, "examples/a.cpp", &c(FUNCTION_LINES - 2)), 0);
        assert_eq!(found(short_functions, "examples/a.cpp", &c(FUNCTION_LINES - 1)), 1);
        assert_eq!(found(short_functions, "README.md", &c(FUNCTION_LINES)), 0);
    }
    #[test]
    fn kernels_that_do_not_wait_are_found() {
        let kernel = "__global__ void f() { g(); }\n";
        assert_eq!(found(kernels_wait, "cuda/a.cu", kernel), 1);
        assert_eq!(found(kernels_wait, "tests/cuda/a.cu", kernel), 0);
        let waiting = "__global__ void f() { wait_for_predecessor(); }\n";
        assert_eq!(found(kernels_wait, "cuda/a.cu", waiting), 0);
        assert_eq!(found(kernels_wait, "cuda/a.cu", "// wait_for_predecessor();\n"), 0);
    }
}
