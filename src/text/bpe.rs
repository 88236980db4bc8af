//! One pre-token -> ids: direct look-up, else byte-pair encoding.
//!
//! What it is: a ranked vocabulary, which has no merge list, turned into merges; and the choice of
//! who applies them: `pairs` for short pieces, the `tokenizers` crate's BPE model, whose time is
//! `n log n`, for long ones. What it is not: normalising or splitting; the crate's own pipeline for
//! those keeps an alignment of every character and is several times slower than this library's.

use std::path::Path;

use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::error::{Error, Result};
use crate::text::byte_level;
use crate::text::pairs::{MAX_PIECE_BYTES, Pairs, Parts};
use crate::text::vocabulary::Vocabulary;

/// The encoder of pre-tokens. Immutable; any thread may use it.
pub(super) struct Bpe {
    model: BPE,
    pairs: Pairs,
    /// Is there a byte that is no token by itself, so that text with it cannot be written?
    lacks_bytes: bool,
    /// What stands in for a character that cannot be written: U+FFFD, or nothing.
    replacement: &'static str,
}

/// Working memory of [`Bpe::encode`], kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    text: String,
    parts: Parts,
}

impl Bpe {
    /// Builds the encoder of `vocabulary`, and the merges it derived, as pairs of tokens in the
    /// byte alphabet. `path` is for errors.
    pub(super) fn new(vocabulary: &Vocabulary, path: &Path) -> Result<(Bpe, Merges)> {
        let (ids, merges) = derive(vocabulary, path)?;
        let pairs = number(&ids, &merges);
        let lacks_bytes = !(0..=255).all(|byte| pairs.has_byte(byte));
        let replaceable = "\u{FFFD}".bytes().all(|byte| pairs.has_byte(byte));
        // No cache: it would live in the host's threads, and long pieces seldom come twice.
        let builder = BPE::builder().cache_capacity(0).vocab_and_merges(ids, merges.clone());
        let model = builder.build().map_err(|error| Error::corrupt(path, error.to_string()))?;
        let replacement = if replaceable { "\u{FFFD}" } else { "" };
        Ok((Bpe { model, pairs, lacks_bytes, replacement }, merges))
    }

    /// Is there text that leaves no token behind?
    pub(super) fn drops_text(&self) -> bool {
        self.lacks_bytes && self.replacement.is_empty()
    }

    /// `text` without the characters that the vocabulary cannot write; `None` if there are none.
    pub(super) fn replace_inexpressible(&self, text: &str) -> Option<String> {
        let is_bad = |byte| !self.pairs.has_byte(byte);
        if !self.lacks_bytes || !text.bytes().any(is_bad) {
            return None;
        }
        let mut written = String::with_capacity(text.len());
        for char in text.chars() {
            match char.encode_utf8(&mut [0; 4]).bytes().any(is_bad) {
                true => written.push_str(self.replacement),
                false => written.push(char),
            }
        }
        Some(written)
    }

    /// Appends the ids of one pre-token, each of whose bytes must be a token.
    pub(super) fn encode(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        byte_level::write(piece.as_bytes(), &mut scratch.text);
        if let Some(id) = self.model.token_to_id(&scratch.text) {
            return ids.push(id);
        }
        if piece.len() <= MAX_PIECE_BYTES {
            return self.pairs.encode(piece.as_bytes(), &mut scratch.parts, ids);
        }
        // Fails only for a model with an unknown token that is not in it; this one has none.
        let tokens = self.model.tokenize(&scratch.text).unwrap_or_default();
        ids.extend(tokens.iter().map(|token| token.id));
    }
}

/// The merges as ids.
fn number(ids: &Vocab, merges: &Merges) -> Pairs {
    let id = |text: &str| ids.get(text).copied();
    let byte_ids =
        std::array::from_fn(|byte| id(byte_level::char_of(byte as u8).encode_utf8(&mut [0; 4])));
    let mut merged = String::new();
    let numbered = merges.iter().filter_map(|(left, right)| {
        merged.clear();
        merged.extend([left.as_str(), right.as_str()]);
        Some(((id(left)?, id(right)?), id(&merged)?))
    });
    Pairs::new(byte_ids, numbered)
}

/// The vocabulary in the byte alphabet, and its merges: a token that the others reduce to two parts
/// is the merge of those, at its own rank. In a vocabulary that was trained as BPE that is every
/// token of two bytes or more; any other is met by direct look-up only.
fn derive(vocabulary: &Vocabulary, path: &Path) -> Result<(Vocab, Merges)> {
    let mut ids = Vocab::with_capacity(vocabulary.len());
    let mut tokens = Vec::with_capacity(vocabulary.len());
    for (token, id) in vocabulary.iter().zip(0..) {
        let mut text = String::new();
        byte_level::write(token, &mut text);
        if let Some(first) = ids.insert(text.clone(), id) {
            return Err(Error::corrupt(path, format!("token {id} repeats token {first}")));
        }
        tokens.push(text);
    }
    let mut merges = Merges::new();
    for token in &tokens {
        if let Some((left, right)) = two_parts(token, &ids) {
            merges.push((left.to_string(), right.to_string()));
        }
    }
    Ok((ids, merges))
}

/// The two parts that `token` comes from: its bytes merged, lowest rank and then leftmost first,
/// until two parts are left; `None` if no merge leads there.
fn two_parts<'a>(token: &'a str, ids: &Vocab) -> Option<(&'a str, &'a str)> {
    // Part i is token[starts[i]..starts[i + 1]]; ranks[i] is that of parts i and i + 1 merged.
    let mut starts: Vec<usize> = token.char_indices().map(|(start, _)| start).collect();
    starts.push(token.len());
    let rank = |starts: &[usize], part: usize| {
        let merged = &token[starts[part]..*starts.get(part + 2)?];
        ids.get(merged).copied()
    };
    let mut ranks: Vec<Option<u32>> =
        (0..starts.len() - 1).map(|part| rank(&starts, part)).collect();
    while starts.len() > 3 {
        let lowest = ranks.iter().enumerate().filter_map(|(part, &rank)| Some((rank?, part))).min();
        let (_, part) = lowest?;
        starts.remove(part + 1);
        ranks.remove(part + 1);
        ranks[part] = rank(&starts, part);
        if part > 0 {
            ranks[part - 1] = rank(&starts, part - 1);
        }
    }
    let middle = *starts.get(1).filter(|_| starts.len() == 3)?;
    Some(token.split_at(middle))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[&[u8]]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        tokens.iter().for_each(|token| vocabulary.push(token).unwrap());
        vocabulary
    }

    fn encode(tokens: &[&[u8]], piece: &str) -> Vec<u32> {
        let (bpe, _) = Bpe::new(&vocabulary(tokens), Path::new("vocabulary")).unwrap();
        let mut ids = Vec::new();
        bpe.encode(piece, &mut Scratch::default(), &mut ids);
        ids
    }

    const LETTERS: [&[u8]; 8] = [b"a", b"b", b"c", b"bc", b"ab", b"abc", b"abcabc", b"cc"];

    #[test]
    fn lowest_rank_merges_first() {
        assert_eq!(encode(&LETTERS, "abca"), [5, 0]);
        assert_eq!(encode(&LETTERS, "ab"), [4]);
        assert_eq!(encode(&LETTERS, "abcabcab"), [6, 4]);
        assert_eq!(encode(&LETTERS, "ccc"), [7, 2]);
    }

    #[test]
    fn short_and_long_pieces_have_the_same_merges() {
        let long = "abcabccabbcacc".repeat(MAX_PIECE_BYTES);
        let (bpe, _) = Bpe::new(&vocabulary(&LETTERS), Path::new("")).unwrap();
        for length in 1..600 {
            let (mut scratch, mut ids, mut by_scan) = (Scratch::default(), vec![], vec![]);
            bpe.encode(&long[..length], &mut scratch, &mut ids);
            bpe.pairs.encode(&long.as_bytes()[..length], &mut scratch.parts, &mut by_scan);
            assert_eq!(ids, by_scan, "{length}");
        }
    }

    #[test]
    fn merges_follow_from_ranks() {
        let (_, merges) = derive(&vocabulary(&LETTERS), Path::new("")).unwrap();
        let pairs: Vec<String> = merges.iter().map(|(a, b)| format!("{a}+{b}")).collect();
        assert_eq!(pairs, ["b+c", "a+b", "a+bc", "abc+abc", "c+c"]);
    }

    #[test]
    fn a_token_without_two_parts_is_met_directly() {
        let tokens: [&[u8]; 4] = [b"a", b"b", b"c", b"abc"];
        assert_eq!(encode(&tokens, "abc"), [3]);
        assert_eq!(encode(&tokens, "abcc"), [0, 1, 2, 2]);
    }

    #[test]
    fn a_part_may_have_a_higher_rank_than_the_whole() {
        let tokens: [&[u8]; 5] = [b"a", b"b", b"c", b"abc", b"bc"];
        assert_eq!(encode(&tokens, "abcc"), [3, 2]);
    }

    #[test]
    fn a_repeated_token_is_refused() {
        let error = derive(&vocabulary(&[b"a", b"b", b"a"]), Path::new("p")).unwrap_err();
        assert_eq!(error, Error::corrupt(Path::new("p"), "token 2 repeats token 0"));
    }

    #[test]
    fn characters_that_cannot_be_written_are_replaced() {
        let (bpe, _) = Bpe::new(&vocabulary(&LETTERS), Path::new("")).unwrap();
        assert_eq!(bpe.replace_inexpressible("abc"), None);
        assert_eq!(bpe.replace_inexpressible("a中bz"), Some("ab".into()));
        let tokens: [&[u8]; 4] = [b"a", b"\xEF", b"\xBF", b"\xBD"];
        let (bpe, _) = Bpe::new(&vocabulary(&tokens), Path::new("")).unwrap();
        assert_eq!(bpe.replace_inexpressible("a中"), Some("a\u{FFFD}".into()));
    }
}
