//! The ABI as a test: the committed header is what the code says, it compiles everywhere, and the
//! library that `make lib` links exports what the header declares, and nothing else.
//!
//! Needs gcc, clang and binutils, and the library. `QWEN_BLESS=1` (`make header`) rewrites
//! include/qwen.h and tests/abi/symbols.txt instead of comparing. The programs that call the
//! library are under tests/c.

// Clippy knows test functions, but not their helpers: those may stop the test, too.
#![allow(clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of src/capi that the header is made of, in the order it shows them.
const HEADER_FILES: &[&str] = &[
    "codes",
    "errors",
    "buffers",
    "version",
    "options",
    "log",
    "engine",
    "session",
    "event",
    "logprobs",
    "tool_call",
    "request",
    "queue",
    "score",
    "embed",
    "tokenizer",
    "detok",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a committed file with what it should be, or writes it.
fn compare(path: &Path, wanted: &str) {
    if std::env::var_os("QWEN_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, wanted).expect("a written file");
        return;
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(found.lines().count().min(wanted.lines().count())) + 1;
    assert!(found == wanted, "{}:{line} is out of date: run `make header`", path.display());
}

/// The header, generated from the code.
fn header() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let versions = format!(
        "\n/// The version of this header; qwen_version() is the library's.\n\
         #define QWEN_VERSION \"{}\"\n#define QWEN_VERSION_MAJOR {}\n\
         #define QWEN_VERSION_MINOR {}\n#define QWEN_VERSION_PATCH {}",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    );
    let mut builder = cbindgen::Builder::new().with_config(config).with_after_include(versions);
    for file in HEADER_FILES {
        builder = builder.with_src(root().join(format!("src/capi/{file}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().expect("a header").write(&mut header);
    String::from_utf8(header).expect("UTF-8")
}

/// The functions a header declares: every name before a parenthesis outside comments.
fn declared(header: &str) -> BTreeSet<String> {
    let code = header.lines().filter(|line| !line.trim_start().starts_with("//"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.filter_map(|line| {
        let before = &line[..line.find('(')?];
        let name = &before[before.rfind(|c| !is_name(c)).map_or(0, |at| at + 1)..];
        (name.starts_with("qwen_") && !line.starts_with(' ')).then(|| name.to_string())
    })
    .collect()
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn library() -> PathBuf {
    let path = root().join("build/lib/libqwen.so");
    assert!(path.exists(), "build/lib/libqwen.so is missing: run `make lib`");
    path
}

#[test]
fn header_is_what_the_code_says() {
    let header = header();
    // cbindgen leaves out silently what it cannot read, such as a file that was not listed.
    let exports: BTreeSet<String> = std::fs::read_dir(root().join("src/capi"))
        .expect("src/capi")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "hooks"))
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|code| {
            let exports = code.match_indices("extern \"C\" fn qwen_").map(|(at, opening)| {
                let name = &code[at + opening.len() - "qwen_".len()..];
                name[..name.find('(').expect("arguments")].to_string()
            });
            exports.collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(declared(&header), exports);
    compare(&root().join("include/qwen.h"), &header);
}

#[test]
fn header_and_symbol_list_agree() {
    let symbols: String = declared(&header()).iter().map(|name| format!("{name}\n")).collect();
    compare(&root().join("tests/abi/symbols.txt"), &symbols);
}

#[test]
fn library_exports_the_symbol_list_and_nothing_else() {
    let listed = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let exported: BTreeSet<&str> =
        listed.lines().filter(|line| !line.ends_with(" A QWEN_1")).collect();
    let names: String = exported
        .iter()
        .map(|line| {
            let symbol = line.rsplit(' ').next().unwrap_or_default();
            assert!(line.contains(" T "), "not a function: {line}");
            symbol.strip_suffix("@@QWEN_1").unwrap_or_else(|| panic!("no version: {line}"))
        })
        .collect::<BTreeSet<&str>>()
        .iter()
        .map(|name| format!("{name}\n"))
        .collect();
    let promised = std::fs::read_to_string(root().join("tests/abi/symbols.txt")).expect("a list");
    assert_eq!(names, promised, "exported by the library, and tests/abi/symbols.txt");
}

#[test]
fn library_is_linked_as_promised() {
    let dynamic = run(Command::new("readelf").args(["-dW"]).arg(library()));
    for wanted in ["Library soname: [libqwen.so.1]", "NODELETE", "BIND_NOW"] {
        assert!(dynamic.contains(wanted), "{wanted}:\n{dynamic}");
    }
    assert!(!dynamic.contains("TEXTREL") && !dynamic.contains("RUNPATH"), "{dynamic}");
    let system = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
    for needed in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        assert!(system.iter().any(|name| needed.contains(name)), "{needed}");
    }
    let segments = run(Command::new("readelf").args(["-lW"]).arg(library()));
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    let stack = segments.lines().find(|line| line.contains("GNU_STACK")).unwrap_or_default();
    assert!(!stack.contains("RWE"), "an executable stack: {stack}");
}

#[test]
fn headers_compile_alone_and_twice_under_every_standard() {
    let folder = root().join("build/abi");
    std::fs::create_dir_all(&folder).expect("a folder");
    let twice = "#include \"qwen.h\"\n#include \"qwen.h\"\n\
                 int main(void) { return (int)qwen_abi_version() - QWEN_ABI_VERSION; }\n";
    let twice_cpp = twice.replace("qwen.h", "qwen.hpp").replace("(void)", "()");
    let cases = [
        ("c", "-std=c99", "gcc", twice, ""),
        ("c", "-std=c11", "gcc", twice, ""),
        ("c", "-std=c99", "clang", twice, ""),
        ("c", "-std=c11", "clang", twice, ""),
        ("c++", "-std=c++17", "g++", twice, ""),
        ("c++", "-std=c++17", "clang++", twice, ""),
        ("c++", "-std=c++17", "g++", &twice_cpp, ""),
        ("c++", "-std=c++20", "g++", &twice_cpp, ""),
        ("c++", "-std=c++2b", "g++", &twice_cpp, ""),
        ("c++", "-std=c++17", "clang++", &twice_cpp, ""),
        ("c++", "-std=c++20", "clang++", &twice_cpp, ""),
        ("c++", "-std=c++2b", "clang++", &twice_cpp, ""),
        ("c++", "-std=c++2b", "g++", &twice_cpp, "-fno-exceptions"),
        ("c++", "-std=c++17", "clang++", &twice_cpp, "-fno-exceptions"),
    ];
    for (index, (language, standard, compiler, program, flag)) in cases.into_iter().enumerate() {
        let source = folder.join(format!("alone-{index}.txt"));
        std::fs::write(&source, program).expect("a written program");
        let mut command = Command::new(compiler);
        command.args(["-x", language, standard, "-Wall", "-Wextra", "-Werror", "-pedantic"]);
        command.args(["-Wconversion", "-Wshadow"]);
        command.args((!flag.is_empty()).then_some(flag)).arg("-I").arg(root().join("include"));
        run(command.args(["-fsyntax-only"]).arg(&source));
    }
}

/// A function that is only in qwen.h is one that C++ programs do not have.
#[test]
fn the_cpp_header_calls_every_function() {
    let mut code = String::new();
    let parts = std::fs::read_dir(root().join("include/qwen")).expect("the parts of qwen.hpp");
    let parts = parts.map(|part| part.expect("a part").path());
    for path in parts.chain([root().join("include/qwen.hpp")]) {
        let text = std::fs::read_to_string(path).expect("a header");
        // Comments name functions, too.
        for line in text.lines() {
            code += line.split("//").next().unwrap_or_default();
            code.push('\n');
        }
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let used: BTreeSet<&str> = code.split(|c| !is_part(c)).collect();
    let header = std::fs::read_to_string(root().join("include/qwen.h")).expect("qwen.h");
    let functions = declared(&header);
    assert!(functions.len() > 70, "only {} functions are found", functions.len());
    let missing: Vec<_> = functions.iter().filter(|name| !used.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "qwen.hpp does not call {missing:?}");
}

#[test]
fn version_macros_are_the_packages() {
    let program = r#"#include "qwen.h"
        #include <stdio.h>
        int main(void) {
            printf("%s %d.%d.%d %s %d %u", QWEN_VERSION, QWEN_VERSION_MAJOR, QWEN_VERSION_MINOR,
                   QWEN_VERSION_PATCH, qwen_version(), QWEN_ABI_VERSION, qwen_abi_version());
            return qwen_check_abi(QWEN_ABI_VERSION, NULL) != QWEN_OK
                || qwen_check_abi(QWEN_ABI_VERSION + 1, NULL) != QWEN_E_ABI_MISMATCH;
        }"#;
    let (folder, library) = (root().join("build/abi"), library());
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, executable) = (folder.join("versions.c"), folder.join("versions"));
    std::fs::write(&source, program).expect("a written program");
    let library = library.parent().expect("its folder").display().to_string();
    let search = format!("-Wl,-rpath,{library}");
    run(Command::new("cc")
        .args(["-std=c99", "-I"])
        .args([&root().join("include"), &source])
        .args(["-o".as_ref(), executable.as_os_str()])
        .args(["-L", &library, "-lqwen", &search]));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(run(&mut Command::new(executable)), format!("{version} {version} {version} 1 1"));
}
