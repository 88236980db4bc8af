//! Every file of the fuzzers' corpus, findings of the past among them, on the stable compiler.
//!
//! `make fuzz` looks for more; tests/fuzz/entries says what is held.

// A panic of an entry is a finding, and fails the test.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "fuzz/entries/mod.rs"]
mod entries;

use std::path::Path;

/// Calls the entry of this name with every file of its corpus.
fn replay(name: &str) {
    let (_, entry) = entries::ALL.into_iter().find(|(of, _)| *of == name).expect("an entry");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut count = 0;
    for file in std::fs::read_dir(&folder).expect("a corpus") {
        let path = file.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a readable file");
        let outcome = std::panic::catch_unwind(|| entry(&bytes));
        assert!(outcome.is_ok(), "{} breaks a promise", path.display());
        count += 1;
    }
    assert!(count >= 10, "{count} files in {}", folder.display());
}

/// One test per entry, and none is forgotten: `entries::ALL` is as long as this list.
macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_entry_is_replayed() {
            assert!(entries::ALL.map(|(name, _)| name).iter().eq(&[$(stringify!($name)),*]));
        }
    };
}

replays!(chat loader options react schema session text vocabulary);
