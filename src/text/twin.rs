//! The slow twin: the `tokenizers` crate's whole pipeline on the real vocabulary, as a test.
//!
//! The merges that `bpe` derives are written out as a `tokenizer.json`, as Qwen-1's conversions are
//! published. The crate and this library open the same file, and must agree on every text.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::bpe::Merges;

use crate::text::bpe::Bpe;
use crate::text::byte_level;
use crate::text::split::PATTERN;
use crate::text::tokenizer::{Specials, Tokenizer};
use crate::text::vocabulary::Vocabulary;

/// As many as the published conversions of this vocabulary have.
const QWEN_MERGES: usize = 151_387;

struct Twins {
    /// From `qwen.tiktoken`.
    own: Tokenizer,
    /// From `tokenizer.json`.
    own_json: Tokenizer,
    /// The crate, from the same `tokenizer.json`.
    slow: tokenizers::Tokenizer,
}

fn twins() -> &'static Twins {
    static TWINS: OnceLock<Twins> = OnceLock::new();
    TWINS.get_or_init(|| {
        let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/vocabulary");
        let vocabulary = Vocabulary::read(&real.join("qwen.tiktoken"))
            .unwrap_or_else(|error| panic!("{error}: `make test` fetches it"));
        let (_, merges) = Bpe::new(&vocabulary, &real).unwrap();
        assert_eq!(merges.len(), QWEN_MERGES);
        let folder = Folder::new();
        let path = folder.0.join("tokenizer.json");
        std::fs::write(&path, tokenizer_json(&vocabulary, &merges).to_string()).unwrap();
        Twins {
            own: Tokenizer::open(&real).unwrap(),
            own_json: Tokenizer::open(&folder.0).unwrap(),
            slow: tokenizers::Tokenizer::from_file(&path).unwrap(),
        }
    })
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let folder = std::env::temp_dir().join(format!("libqwen-twin-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tokenizer_json(vocabulary: &Vocabulary, merges: &Merges) -> Value {
    let mut ids = serde_json::Map::new();
    for (token, id) in vocabulary.iter().zip(0_u32..) {
        let mut text = String::new();
        byte_level::write(token, &mut text);
        ids.insert(text, id.into());
    }
    let byte_level = |use_regex| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
               "use_regex": use_regex})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated",
             "invert": false},
            byte_level(false),
        ]},
        "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "ignore_merges": false, "vocab": ids, "merges": merges},
    })
}

/// Characters on which Unicode's versions agree: the crate normalises with an older one.
fn texts() -> impl Strategy<Value = String> {
    let ranges = [' '..='~', '\t'..='\r', 'À'..='ÿ', '\u{300}'..='\u{33F}', 'Ѐ'..='ӿ'];
    let more = ['\u{2000}'..='\u{206F}', '一'..='龥', '가'..='힣', 'ᄀ'..='ᄒ', '😀'..='🙏'];
    let char = proptest::sample::select([ranges, more].concat())
        .prop_flat_map(|range| proptest::char::range(*range.start(), *range.end()));
    let word = proptest::sample::select(vec![
        "hello",
        " the",
        "你好",
        "，",
        "    ",
        "\n\n",
        "return",
        "'s",
        "世界",
        "123",
        "ing",
        "人工智能",
    ]);
    let piece = prop_oneof![char.prop_map(String::from), word.prop_map(String::from)];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn all_agree(text in texts()) {
        let Twins { own, own_json, slow } = twins();
        let ids = own.encode(&text, Specials::AsText);
        let slow_ids = slow.encode_fast(text.as_str(), false).unwrap();
        prop_assert_eq!(&ids, slow_ids.get_ids());
        prop_assert_eq!(&ids, &own_json.encode(&text, Specials::AsText));
    }
}
