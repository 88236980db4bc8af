//! `tokenizer.json`, the vocabulary as the `tokenizers` crate writes it, for folders without
//! `qwen.tiktoken`.
//!
//! What it is: a reader that takes such a file if it says exactly what Qwen-1's tokenizer does
//! (NFC, the split pattern, byte-level BPE with merges in rank order) and refuses any other by the
//! field that differs. What it is not: a general tokenizer loader; a pipeline that is nearly Qwen's would
//! give nearly Qwen's ids. Gives the same [`Vocabulary`] that `qwen.tiktoken` does.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::text::byte_level;
use crate::text::special::SpecialTokens;
use crate::text::split::PATTERN;
use crate::text::vocabulary::{Vocabulary, read_file};

/// The largest file taken; a Qwen-1 conversion is about 7 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What the file says, as far as it matters.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    byte_fallback: Value,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Old files join the two parts by a space, new ones list them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Joined(text) => text.split_once(' '),
            Merge::Pair(left, right) => Some((left, right)),
        }
    }
}

impl TokenizerJson {
    /// Reads the file at `path` and checks that it is Qwen-1's pipeline.
    pub(super) fn read(path: &Path) -> Result<TokenizerJson> {
        TokenizerJson::parse(&read_file(path, MAX_FILE_BYTES)?, path)
    }

    fn parse(contents: &[u8], path: &Path) -> Result<TokenizerJson> {
        let file: TokenizerJson = serde_json::from_slice(contents)
            .map_err(|error| Error::corrupt(path, format!("not a tokenizer: {error}")))?;
        match file.foreign_field() {
            None => Ok(file),
            Some(field) => Err(unsupported(path, field)),
        }
    }

    /// The first field that says something else than Qwen-1's tokenizer.
    fn foreign_field(&self) -> Option<&'static str> {
        let Model { kind, dropout, unk_token, byte_fallback, .. } = &self.model;
        let split = &self.pre_tokenizer["pretokenizers"][0];
        let byte_level = &self.pre_tokenizer["pretokenizers"][1];
        let agreements = [
            ("model.type", kind == "BPE" || kind.is_null()),
            ("model.dropout", dropout.is_null()),
            ("model.unk_token", unk_token.is_null()),
            ("model.continuing_subword_prefix", is_empty(&self.model.continuing_subword_prefix)),
            ("model.end_of_word_suffix", is_empty(&self.model.end_of_word_suffix)),
            ("model.byte_fallback", byte_fallback.is_null() || byte_fallback == false),
            ("normalizer", self.normalizer["type"] == "NFC"),
            ("pre_tokenizer", self.pre_tokenizer["type"] == "Sequence"),
            ("pre_tokenizer.pretokenizers", !byte_level.is_null() && self.has_two_steps()),
            ("pre_tokenizer.pretokenizers[0].type", split["type"] == "Split"),
            ("pre_tokenizer.pretokenizers[0].pattern", split["pattern"]["Regex"] == PATTERN),
            ("pre_tokenizer.pretokenizers[0].behavior", split["behavior"] == "Isolated"),
            ("pre_tokenizer.pretokenizers[0].invert", split["invert"] == false),
            ("pre_tokenizer.pretokenizers[1].type", byte_level["type"] == "ByteLevel"),
            (
                "pre_tokenizer.pretokenizers[1].add_prefix_space",
                byte_level["add_prefix_space"] == false,
            ),
            ("pre_tokenizer.pretokenizers[1].use_regex", byte_level["use_regex"] == false),
        ];
        agreements.into_iter().find(|(_, agrees)| !agrees).map(|(field, _)| field)
    }

    fn has_two_steps(&self) -> bool {
        self.pre_tokenizer["pretokenizers"].as_array().is_some_and(|steps| steps.len() == 2)
    }

    /// The ordinary tokens, whose ids must be 0, 1, 2, ... without a gap.
    pub(super) fn vocabulary(&self, path: &Path) -> Result<Vocabulary> {
        let mut tokens: Vec<(u32, &str)> =
            self.model.vocab.iter().map(|(token, &id)| (id, token.as_str())).collect();
        tokens.sort_unstable();
        let mut vocabulary = Vocabulary::default();
        for ((id, token), expected) in tokens.into_iter().zip(0..) {
            if id != expected {
                return Err(Error::corrupt(path, format!("id {id} in place of {expected}")));
            }
            let bytes = byte_level::read(token).ok_or_else(|| {
                Error::corrupt(path, format!("token {id} is not written in the byte alphabet"))
            })?;
            let pushed = vocabulary.push(&bytes);
            pushed.map_err(|reason| Error::corrupt(path, format!("token {id}: {reason}")))?;
        }
        match vocabulary.len() {
            0 => Err(Error::corrupt(path, "there are no tokens in it")),
            _ => Ok(vocabulary),
        }
    }

    /// Checks that the merges are those that the ranks say, and that control tokens have the ids
    /// that Qwen-1's rule gives them.
    pub(super) fn check(
        &self,
        merges: &[(String, String)],
        specials: &SpecialTokens,
        path: &Path,
    ) -> Result<()> {
        let own = self.model.merges.iter().map(Merge::parts);
        if !own.eq(merges.iter().map(|(left, right)| Some((left.as_str(), right.as_str())))) {
            return Err(unsupported(path, "model.merges"));
        }
        let agrees = |token: &AddedToken| specials.surface(token.id) == Some(&*token.content);
        match self.added_tokens.iter().all(agrees) {
            true => Ok(()),
            false => Err(unsupported(path, "added_tokens")),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || *value == json!("")
}

fn unsupported(path: &Path, field: &str) -> Error {
    Error::Unsupported {
        path: path.to_path_buf(),
        field: field.into(),
        reason: "it differs from Qwen-1's tokenizer".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen() -> Value {
        json!({
            "added_tokens": [{"id": 4, "content": "<|im_start|>"}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN},
                 "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
            ]},
            "model": {"type": "BPE", "vocab": {"a": 0, "Ġ": 1, "Ġa": 2}, "merges": [["Ġ", "a"]]},
        })
    }

    fn load(json: &Value) -> Result<Vocabulary> {
        let path = Path::new("tokenizer.json");
        let file = TokenizerJson::parse(json.to_string().as_bytes(), path)?;
        let vocabulary = file.vocabulary(path)?;
        let merges = [("Ġ".to_string(), "a".to_string())];
        file.check(&merges, &SpecialTokens::new(3), path)?;
        Ok(vocabulary)
    }

    #[test]
    fn qwen_is_taken_with_either_form_of_merges() {
        let mut json = qwen();
        let tokens = load(&json).unwrap();
        assert!(tokens.iter().eq([b"a".as_slice(), b" ", b" a"]));
        json["model"]["merges"] = json!(["Ġ a"]);
        assert!(load(&json).is_ok());
    }

    #[test]
    fn anything_else_is_refused_by_its_field() {
        let changes = [
            ("/normalizer/type", json!("NFKC"), "normalizer"),
            ("/normalizer", Value::Null, "normalizer"),
            ("/pre_tokenizer", Value::Null, "pre_tokenizer"),
            ("/pre_tokenizer/pretokenizers", json!([]), "pre_tokenizer.pretokenizers"),
            (
                "/pre_tokenizer/pretokenizers/0/pattern/Regex",
                json!(PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|")),
                "pre_tokenizer.pretokenizers[0].pattern",
            ),
            ("/model/type", json!("Unigram"), "model.type"),
            ("/model/merges", json!([]), "model.merges"),
            ("/model/merges", json!(["a Ġ"]), "model.merges"),
            ("/added_tokens/0/id", json!(5), "added_tokens"),
            ("/added_tokens/0/content", json!("<think>"), "added_tokens"),
        ];
        for (place, value, expected) in changes {
            let mut json = qwen();
            *json.pointer_mut(place).unwrap() = value;
            match load(&json) {
                Err(Error::Unsupported { field, .. }) => assert_eq!(field, expected),
                other => panic!("{place}: {:?}", other.map(|_| ())),
            }
        }
    }

    #[test]
    fn broken_files_are_corrupt() {
        let changes = [
            ("/model/vocab", json!({}), "no tokens"),
            ("/model/vocab", json!({"a": 0, "Ġa": 2}), "id 2 in place of 1"),
            ("/model/vocab", json!({"a": 0, "Ġ": 0}), "id 0 in place of 1"),
            ("/model/vocab", json!({"a": 0, " ": 1}), "byte alphabet"),
            ("/model/vocab", json!({"a": 0, "": 1}), "0 bytes"),
            ("/model/vocab", json!({"a": -1}), "not a tokenizer"),
            ("/model", json!(7), "not a tokenizer"),
        ];
        for (place, value, part) in changes {
            let mut json = qwen();
            *json.pointer_mut(place).unwrap() = value;
            match load(&json) {
                Err(Error::Corrupt { reason, .. }) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{place}: {:?}", other.map(|_| ())),
            }
        }
    }
}
