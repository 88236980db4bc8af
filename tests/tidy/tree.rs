//! Rules about files of any language: length, the opening comment, words that stay out of the
//! tree, the version in one place, and where test data comes from. Also the walk over the tree.

use std::path::{Path, PathBuf};

use super::source::{Finding, Source, words};

const FILE_LINES: usize = 450;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] =
    &[("include/qwen.h", "generated: one header is the whole manual of the C ABI")];

/// Extensions of files that people write and read as code.
const CODE: &[&str] =
    &["rs", "c", "cpp", "h", "hpp", "cu", "cuh", "py", "sh", "mk", "go", "java", "toml"];

/// How a file of code may open, by extension. Shell and Python may begin with `#!`.
const OPENINGS: &[(&[&str], &[&str])] = &[
    (&["rs"], &["//!"]),
    (&["c", "cpp", "h", "hpp", "cu", "cuh", "go", "java"], &["//", "/*"]),
    (&["py"], &["\"\"\"", "r\"\"\"", "# "]),
    (&["sh", "mk"], &["# "]),
];

/// Spelt in two parts so that this file does not hold them.
const FORBIDDEN_WORDS: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "say what is so, or do it"),
    (concat!("FIX", "ME"), "say what is so, or do it"),
    (concat!("XX", "X"), "say what is so, or do it"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/tmp/", "setup"), "a path of one machine"),
    (concat!("../sha", "red"), "a path outside the tree"),
];

/// Files that may hold the version: where it is decided, what is derived from it by a tool, and
/// the record of releases.
const VERSION_FILES: &[&str] =
    &["Cargo.toml", "Cargo.lock", "tests/fuzz/Cargo.lock", "include/qwen.h", "CHANGELOG.md"];

pub(crate) fn short_files(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().count();
    let excepted = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    if lines <= FILE_LINES || excepted || !source.has_extension(CODE) {
        return Vec::new();
    }
    vec![source.finding(0, format!("{lines} lines in one file; {FILE_LINES} are the limit"))]
}

pub(crate) fn opening_comment(source: &Source) -> Vec<Finding> {
    let Some((_, openings)) = OPENINGS.iter().find(|(names, _)| source.has_extension(names)) else {
        return Vec::new();
    };
    let text = match source.text.strip_prefix("#!") {
        Some(shebang) if !shebang.starts_with('[') => {
            shebang.split_once('\n').map_or("", |(_, rest)| rest)
        }
        _ => &source.text,
    };
    if openings.iter().any(|opening| text.trim_start().starts_with(opening)) {
        return Vec::new();
    }
    vec![source.finding(0, "the file does not open by saying what it is")]
}

pub(crate) fn forbidden_words(source: &Source) -> Vec<Finding> {
    FORBIDDEN_WORDS
        .iter()
        .flat_map(|(word, why)| {
            words(&source.text, word)
                .map(move |offset| source.finding(offset, format!("`{word}`: {why}")))
        })
        .collect()
}

pub(crate) fn one_version(source: &Source, version: &str) -> Vec<Finding> {
    if VERSION_FILES.contains(&source.path.as_str()) {
        return Vec::new();
    }
    let stands_alone = |offset: &usize| {
        let is_part = |c: char| c.is_ascii_digit() || c == '.';
        !source.text[..*offset].ends_with(is_part)
            && !source.text[offset + version.len()..].starts_with(|c: char| c.is_ascii_digit())
    };
    words(&source.text, version)
        .filter(stands_alone)
        .map(|offset| source.finding(offset, "the version lives in Cargo.toml alone"))
        .collect()
}

/// Each entry of tests/data (a file or a folder) must be named by a script: one that stands there
/// or in examples/, and made it.
pub(crate) fn data_has_a_script(entries: &[String], scripts: &[Source]) -> Vec<Finding> {
    let is_script = |entry: &String| entry.ends_with(".py") || entry.ends_with(".md");
    let made =
        |entry: &String| scripts.iter().any(|script| words(&script.text, entry).next().is_some());
    entries
        .iter()
        .filter(|entry| !is_script(entry) && !made(entry))
        .map(|entry| Finding {
            path: format!("tests/data/{entry}"),
            line: 1,
            message: "no script in the tree names what it makes here".to_string(),
        })
        .collect()
}

/// The repository root: as cargo says now, so that a built test can judge another checkout.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Every text file of the tree, but for what git ignores at its root (`/target/` and the like).
pub(crate) fn sources() -> Vec<Source> {
    let ignored = std::fs::read_to_string(root().join(".gitignore")).expect("a .gitignore");
    let mut skipped: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    skipped.push(".git");
    let mut found = Vec::new();
    visit(&root(), &skipped, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn visit(folder: &Path, skipped: &[&str], found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if skipped.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            visit(&path, skipped, found);
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let relative = path.strip_prefix(root()).expect("a path under the root");
            found.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(found(short_files, "src/a.rs", &"\n".repeat(FILE_LINES)), 0);
        assert_eq!(found(short_files, "src/a.rs", &"\n".repeat(FILE_LINES + 1)), 1);
        assert_eq!(found(short_files, "tests/data/a.json", &"\n".repeat(FILE_LINES + 1)), 0);
    }

    #[test]
    fn files_that_do_not_say_what_they_are_are_found() {
        assert_eq!(found(opening_comment, "src/a.rs", "use std::fmt;\n"), 1);
        assert_eq!(found(opening_comment, "src/a.rs", "//! What this is.\n"), 0);
        assert_eq!(found(opening_comment, "a.py", "#!/usr/bin/env python3\nimport os\n"), 1);
        assert_eq!(
            found(opening_comment, "a.py", "#!/usr/bin/env python3\n\"\"\"This.\"\"\"\n"),
            0
        );
        assert_eq!(found(opening_comment, "a.c", "#include <stdio.h>\n"), 1);
        assert_eq!(found(opening_comment, "a.json", "{}"), 0);
    }

    #[test]
    fn forbidden_words_are_found() {
        for (word, _) in FORBIDDEN_WORDS {
            assert_eq!(found(forbidden_words, "README.md", &format!("a {word} b\n")), 1, "{word}");
        }
        assert_eq!(found(forbidden_words, "a.sh", "mktemp a.XXXXXX; cd framework/x\n"), 0);
    }

    #[test]
    fn a_second_version_is_found() {
        let check = |path, text| one_version(&Source::new(path, text), "3.2.1").len();
        assert_eq!(check("README.md", "version 3.2.1.\n"), 1);
        assert_eq!(check("CHANGELOG.md", "version 3.2.1\n"), 0);
        assert_eq!(check("README.md", "13.2.1, 3.2.10, 1.3.2.1\n"), 0);
    }

    #[test]
    fn data_without_a_script_is_found() {
        let scripts = [Source::new("tests/data/make_tiny.py", "OUT = \"tests/data/tiny\"\n")];
        let entries = ["tiny", "make_tiny.py", "stray.bin"].map(str::to_string);
        let findings = data_has_a_script(&entries, &scripts);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].path, "tests/data/stray.bin");
    }
}
