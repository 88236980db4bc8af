//! The hand-written splitter is the split pattern, by a regex engine with look-ahead.

use std::sync::LazyLock;

use fancy_regex::Regex;
use proptest::prelude::*;
use qwen::text::split::{PATTERN, pieces};

static REGEX: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).unwrap());

fn by_regex(text: &str) -> Vec<&str> {
    REGEX.find_iter(text).map(|found| found.unwrap().as_str()).collect()
}

#[test]
fn every_character_in_every_place() {
    for block in 0..0x1100 {
        let mut text = String::new();
        for char in (block << 8..(block + 1) << 8).filter_map(char::from_u32) {
            text.extend([char, ' ', 'a', char, '\'', char, '\n', char, char, '1', ' ', char]);
        }
        assert!(pieces(&text).eq(by_regex(&text)), "U+{block:02X}00");
    }
}

/// Strings in which every alternative of the pattern meets every other.
fn texts() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        " ",
        "  ",
        "\n",
        "\r",
        "\r\n",
        "\t",
        "\u{A0}",
        "\u{3000}",
        "\u{85}",
        "\u{1C}",
        "a",
        "É",
        "中",
        "\u{301}",
        "ǅ",
        "ʰ",
        "1",
        "½",
        "٣",
        "Ⅷ",
        "'",
        "'s",
        "'S",
        "'ſ",
        "'re",
        "'Ll",
        "'v",
        "!",
        "，",
        "😀",
        "\u{200B}",
        "\0",
        "\u{10FFFF}",
    ]);
    let part =
        prop_oneof![9 => part.prop_map(String::from), 1 => any::<char>().prop_map(String::from)];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn pieces_are_matches(text in texts()) {
        prop_assert_eq!(pieces(&text).collect::<Vec<_>>(), by_regex(&text));
        prop_assert_eq!(pieces(&text).collect::<String>(), text);
    }
}
