//! The house rules, held by a test: `cargo test --test tidy`.
//!
//! `rooms` has the import table, `rules` what code may do, `tree` what any file must be. `source` is
//! how they see a file. Each rule is a function over (path, text) and is seen failing on a bad
//! snippet beside it; the tests here run all of them over the tree as it stands.

// Clippy knows test functions, but not their helpers: those may stop the test, too.
#![allow(clippy::expect_used)]

mod rooms;
mod rules;
mod source;
mod tree;

use source::{Finding, Source};

const RULES: &[fn(&Source) -> Vec<Finding>] = &[
    rooms::imports,
    rules::unsafe_in_its_rooms,
    rules::unsafe_says_why,
    rules::forbidden_calls,
    rules::environment,
    rules::foreign_functions,
    rules::short_functions,
    rules::kernels_wait,
    tree::short_files,
    tree::opening_comment,
    tree::forbidden_words,
];

fn assert_none(findings: &[Finding]) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "{} findings\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn the_tree_keeps_the_house_rules() {
    let sources = tree::sources();
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the walk found no sources");
    let findings: Vec<Finding> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(move |rule| rule(source))).collect();
    assert_none(&findings);
}

#[test]
fn the_version_is_written_once() {
    let findings: Vec<Finding> = tree::sources()
        .iter()
        .flat_map(|source| tree::one_version(source, env!("CARGO_PKG_VERSION")))
        .collect();
    assert_none(&findings);
}

#[test]
fn test_data_comes_from_scripts() {
    let Ok(folder) = std::fs::read_dir(tree::root().join("tests/data")) else { return };
    let entries: Vec<String> = folder
        .map(|entry| entry.expect("a readable entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "__pycache__")
        .collect();
    let scripts: Vec<Source> = tree::sources()
        .into_iter()
        .filter(|source| source.has_extension(&["py"]))
        .filter(|source| {
            source.path.starts_with("tests/data/") || source.path.starts_with("examples/")
        })
        .collect();
    assert_none(&tree::data_has_a_script(&entries, &scripts));
}
