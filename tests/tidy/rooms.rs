//! Who may import whom. The table is the documentation; the check below holds the code to it.
//!
//! It reads every `crate::` and `super::` path in the non-test code of `src/`, in `use` lines and
//! inside expressions alike. A room that the table does not list may not exist: adding one is a
//! decision, made here.

use super::source::{Finding, Source, words};

/// Room, and the rooms it may import. Data flows one way: C ABI -> engine -> model -> backend; the
/// rooms below those are pure and know no device.
const ROOMS: &[(&str, &[&str])] = &[
    ("capi", &["engine", "text", "grammar", "sample", "error"]),
    (
        "engine",
        &[
            "model",
            "kv",
            "sample",
            "text",
            "grammar",
            "checkpoint",
            "quant",
            "tensor",
            "backend",
            "batch",
            "error",
        ],
    ),
    ("model", &["backend", "checkpoint", "quant", "tensor", "batch", "error"]),
    ("backend", &["quant", "reader", "tensor", "batch", "error"]),
    ("checkpoint", &["quant", "tensor", "error"]),
    ("text", &["error"]),
    // Knows a vocabulary as bytes: it needs no tokenizer.
    ("grammar", &["error"]),
    ("sample", &["error"]),
    ("kv", &["error"]),
    ("quant", &["tensor"]),
    ("reader", &["tensor", "error"]),
    // Plain data and errors, known to all who need them, knowing nobody.
    ("batch", &[]),
    ("tensor", &[]),
    ("error", &[]),
];

/// Modules held tighter than their room: what is listed, themselves, and nothing else.
const TIGHTER: &[(&str, &[&str])] = &[
    // A pure function from (sequences, free pages, limits) to what runs next.
    ("engine::scheduler", &["kv", "engine::sequence"]),
];

/// Modules that only the listed ones (and themselves) may name: everybody else goes through the
/// traits in `backend`, and what the engine opens is decided in one place.
const PRIVATE: &[(&str, &[&str])] =
    &[("backend::cpu", &["engine::open"]), ("backend::cuda", &["engine::open"])];

/// Crates that belong to some rooms.
const CRATES: &[(&str, &[&str])] = &[
    ("cudarc", &["backend::cuda"]),
    ("memmap2", &["checkpoint", "backend::cpu::fast::huge"]),
    ("tokenizers", &["text"]),
    ("llguidance", &["grammar"]),
    ("libc", &["reader"]),
];

pub(crate) fn imports(source: &Source) -> Vec<Finding> {
    if !source.is_library() || source.path == "src/lib.rs" {
        return Vec::new();
    }
    let module = module_path(&source.path);
    let unlisted = ROOMS.iter().all(|(room, _)| *room != room_of(&module));
    let mut findings: Vec<Finding> = unlisted
        .then(|| source.finding(0, format!("room `{}` is not in the table", room_of(&module))))
        .into_iter()
        .collect();
    for (offset, target) in imported_paths(&source.code, &module) {
        if !allowed(&module, &target) {
            let message = format!("`{module}` may not import `{target}`");
            findings.push(source.finding(offset, message));
        }
    }
    let at_home = |homes: &[&str]| homes.iter().any(|home| is_within(&module, home));
    for (name, homes) in CRATES.iter().filter(|(_, homes)| !at_home(homes)) {
        let message = format!("crate `{name}` belongs to `{}`", homes.join("`, `"));
        for offset in words(&source.code, name) {
            findings.push(source.finding(offset, message.clone()));
        }
    }
    findings
}

/// `src/engine/scheduler.rs` -> `engine::scheduler`; `src/engine/mod.rs` -> `engine`.
fn module_path(path: &str) -> String {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    inner.trim_end_matches("/mod").replace('/', "::")
}

fn room_of(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

/// Is `path` the module `module` or something in it?
fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn allowed(module: &str, target: &str) -> bool {
    let tighter = TIGHTER.iter().find(|(held, _)| is_within(module, held));
    if let Some((held, may)) = tighter {
        return is_within(target, held) || may.iter().any(|other| is_within(target, other));
    }
    let private = PRIVATE.iter().find(|(hidden, _)| is_within(target, hidden));
    let may_name = |(hidden, by): &(&str, &[&str])| {
        is_within(module, hidden) || by.iter().any(|other| is_within(module, other))
    };
    // A parent may name its own children: `backend/mod.rs` declares `cpu` and `cuda`.
    if !private.is_none_or(|entry| may_name(entry) || is_within(entry.0, module)) {
        return false;
    }
    let room = room_of(module);
    room_of(target) == room
        || ROOMS.iter().any(|(name, may)| *name == room && may.contains(&room_of(target)))
}

/// Every path in `code` that begins with `crate` or `super`, written out from the crate's root.
fn imported_paths(code: &str, module: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (start, base) in [("crate::", String::new()), ("super::", parent(module))] {
        // The second `super` of `super::super::` is read with the first.
        for offset in words(code, start).filter(|offset| !code[..*offset].ends_with("super::")) {
            let mut paths = Vec::new();
            expand(&code[offset + start.len()..], base.clone(), &mut paths);
            paths.retain(|path| !path.is_empty());
            found.extend(paths.into_iter().map(|path| (offset, path)));
        }
    }
    found
}

fn parent(module: &str) -> String {
    module.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_string())
}

/// Reads `a::b`, `a::{b, c::d}` or `super::a` at the start of `rest`; returns the bytes it took.
fn expand(rest: &str, base: String, paths: &mut Vec<String>) -> usize {
    let join = |name: &str| match base.as_str() {
        "" => name.to_string(),
        base => format!("{base}::{name}"),
    };
    let blank = rest.len() - rest.trim_start().len();
    let body = &rest[blank..];
    if body.starts_with('{') {
        return blank + expand_group(body, &base, paths);
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name = &body[..body.find(|c| !is_name(c)).unwrap_or(body.len())];
    let path = match name {
        "super" => parent(&base),
        "self" | "" => base,
        _ => join(name),
    };
    let taken = blank + name.len();
    match rest[taken..].strip_prefix("::") {
        Some(more) if !more.starts_with('<') => taken + 2 + expand(more, path, paths),
        _ => {
            paths.push(path);
            taken
        }
    }
}

/// Reads `{a, b::c}`; returns the bytes up to and including the closing brace.
fn expand_group(body: &str, base: &str, paths: &mut Vec<String>) -> usize {
    let mut at = 1;
    while at < body.len() && !body[at..].starts_with('}') {
        let is_item = body[at..].starts_with(|c: char| c.is_alphanumeric() || "_{".contains(c));
        at +=
            if is_item { expand(&body[at..], base.to_string(), paths) } else { char_len(body, at) };
    }
    at + 1
}

fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        imports(&Source::new(path, text)).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn paths_are_written_out() {
        let code = "use crate::{a::{b, c::*}, d};\nlet x = super::e::<u8>(super::super::f::g);";
        let paths: Vec<String> =
            imported_paths(code, "m::n::o").into_iter().map(|(_, path)| path).collect();
        assert_eq!(paths, ["a::b", "a::c", "d", "m::n::e", "m::f::g"]);
    }

    #[test]
    fn the_table_is_held() {
        let good = "use crate::engine::Engine;\nuse crate::error::{Error, Result};\n";
        assert_eq!(messages("src/capi/engine.rs", good), Vec::<String>::new());
        assert_eq!(
            messages("src/capi/engine.rs", "use crate::model::config::ModelConfig;\n"),
            ["`capi::engine` may not import `model::config::ModelConfig`"]
        );
        assert_eq!(
            messages("src/text/chat.rs", "fn f() { crate::engine::poke() }\n"),
            ["`text::chat` may not import `engine::poke`"]
        );
        assert_eq!(messages("src/kv.rs", "use super::{error::Result, tensor::Dtype};").len(), 1);
    }

    #[test]
    fn tests_comments_and_texts_may_name_anything() {
        let text = "// crate::engine\nconst A: &str = \"crate::engine\";\n#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n}\n";
        assert_eq!(messages("src/text/mod.rs", text), Vec::<String>::new());
    }

    #[test]
    fn the_scheduler_is_held_tighter() {
        let good =
            "use crate::engine::sequence::Sequence;\nuse crate::kv::Pages;\nuse super::sequence;\n";
        assert_eq!(messages("src/engine/scheduler.rs", good), Vec::<String>::new());
        assert_eq!(messages("src/engine/scheduler.rs", "use crate::error::Error;").len(), 1);
        assert_eq!(messages("src/engine/scheduler.rs", "use super::worker::Worker;").len(), 1);
        assert_eq!(messages("src/engine/worker.rs", "use super::scheduler::plan;").len(), 0);
    }

    #[test]
    fn concrete_backends_are_private() {
        let import = "use crate::backend::cpu::Cpu;\n";
        assert_eq!(messages("src/engine/open.rs", import).len(), 0);
        assert_eq!(messages("src/backend/cpu/fast/gemm.rs", import).len(), 0);
        assert_eq!(messages("src/engine/worker.rs", import).len(), 1);
        assert_eq!(messages("src/model/layer.rs", import).len(), 1);
        assert_eq!(messages("src/backend/cuda/mod.rs", import).len(), 1);
    }

    #[test]
    fn new_rooms_and_strayed_crates_are_found() {
        assert_eq!(messages("src/misc.rs", ""), ["room `misc` is not in the table"]);
        let import = "use memmap2::Mmap;\n";
        assert_eq!(messages("src/engine/mod.rs", import).len(), 1);
        assert_eq!(messages("src/checkpoint/mod.rs", import).len(), 0);
    }
}
