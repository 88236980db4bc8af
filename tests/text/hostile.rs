//! Texts made to take long, and vocabulary files made to do harm.

use std::time::{Duration, Instant};

use qwen::error::Error;
use qwen::text::tokenizer::{Specials, Tokenizer};

use crate::{empty_folder, qwen};

/// What a megabyte of anything may take here, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_megabyte_of_anything_is_encoded_in_seconds() {
    let units = [
        "a",
        " ",
        "\n",
        "\r\n ",
        "ab",
        "你",
        "!",
        "'",
        "1",
        "\u{301}",
        "a\u{301}",
        "\u{1100}",
        "<|",
        "|>",
        "<|im_end|>",
        "<|im_end|",
        "\u{3000}",
        "\0",
        "😀",
        "aA",
        "\t ",
        "\u{FFFD}",
    ];
    for unit in units {
        let text = unit.repeat((1 << 20) / unit.len());
        let start = Instant::now();
        let ids = qwen().encode(&text, Specials::Parse);
        let taken = start.elapsed();
        assert!(taken < PATIENCE, "{unit:?}: {taken:?}");
        if !unit.contains('\u{301}') {
            assert_eq!(qwen().decode_bytes(&ids, true), text.as_bytes(), "{unit:?}");
        }
    }
}

#[test]
fn a_repeated_token_is_corrupt() {
    let folder = empty_folder("a_repeated_token_is_corrupt");
    let path = folder.join("qwen.tiktoken");
    std::fs::write(&path, "IQ== 0\nIg== 1\nIQ== 2\n").unwrap();
    let error = Tokenizer::open(&folder).unwrap_err();
    assert_eq!(error, Error::corrupt(&path, "token 2 repeats token 0"));
}

#[test]
fn a_bad_line_is_corrupt_with_its_offset() {
    let folder = empty_folder("a_bad_line_is_corrupt_with_its_offset");
    let path = folder.join("qwen.tiktoken");
    std::fs::write(&path, b"IQ== 0\n\xFF\xFF 1\n").unwrap();
    match Tokenizer::open(&folder) {
        Err(Error::Corrupt { path: named, offset_bytes: Some(7), .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_huge_file_is_refused_unread() {
    let folder = empty_folder("a_huge_file_is_refused_unread");
    let file = std::fs::File::create(folder.join("qwen.tiktoken")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(Tokenizer::open(&folder), Err(Error::Corrupt { .. })));
}

#[test]
fn no_vocabulary_is_not_found() {
    let folder = empty_folder("no_vocabulary_is_not_found");
    let path = folder.join("qwen.tiktoken");
    assert_eq!(Tokenizer::open(&folder).unwrap_err(), Error::NotFound { path: path.clone() });
    std::fs::create_dir(&path).unwrap();
    let refused = Tokenizer::open(&folder).unwrap_err();
    assert_eq!(refused, Error::corrupt(&path, "not a regular file"));
}

#[test]
fn tokenizer_json_is_read_only_without_qwen_tiktoken() {
    let folder = empty_folder("tokenizer_json_is_read_only_without_qwen_tiktoken");
    let json = folder.join("tokenizer.json");
    std::fs::write(&json, "{").unwrap();
    match Tokenizer::open(&folder) {
        Err(Error::Corrupt { path, .. }) => assert_eq!(path, json),
        other => panic!("{other:?}"),
    }
    std::fs::write(folder.join("qwen.tiktoken"), "IQ== 0\n").unwrap();
    assert_eq!(Tokenizer::open(&folder).unwrap().num_tokens(), 209);
}
