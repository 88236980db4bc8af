//! `qwen.tiktoken` (or `tokenizer.json`) -> exact Qwen-1 token ids and back.
//!
//! What it is: the tokenizer of a checkpoint folder. Text is brought to NFC, cut into pieces and
//! each piece becomes ids; ids become bytes by table. What it is not: a check of ids against the
//! model, whose embedding may have more rows or fewer; nor chat format, which is `chat`.

use std::borrow::Cow;
use std::path::Path;

use tokenizers::models::bpe::Merges;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::error::{Error, Result};
use crate::text::bpe::{Bpe, Scratch};
use crate::text::special::{END_OF_TEXT, IM_END, IM_START, SpecialTokens};
use crate::text::split;
use crate::text::tokenizer_json::TokenizerJson;
use crate::text::vocabulary::Vocabulary;

/// What becomes of special tokens' surface forms (such as `<|im_end|>`) in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are ordinary text: content can never become a control token.
    AsText,
    /// They become their control ids, leftmost first.
    Parse,
}

/// The longest text that `qwen_tokenizer_encode` takes, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// How many bytes of text one byte of its composed form can stand for: at most 3.5 in UTF-8.
const MAX_COMPOSED: usize = 4;

/// A checkpoint's vocabulary. Immutable; any thread may use it.
///
/// Ids are given by rule: the n ordinary tokens are `0..n` by rank, and the 208 control tokens
/// follow them.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    bpe: Bpe,
    specials: SpecialTokens,
    longest_bytes: usize,
}

impl Tokenizer {
    /// Reads the vocabulary in `folder`: `qwen.tiktoken`, or where there is none `tokenizer.json`.
    ///
    /// # Errors
    /// `NotFound` (naming `qwen.tiktoken`) where there is neither; `Io`; `Corrupt` with the offset
    /// of the bad line; `Unsupported` for a `tokenizer.json` that is not Qwen-1's, by its field.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("qwen.tiktoken");
        let json_path = folder.join("tokenizer.json");
        match Vocabulary::read(&path) {
            Err(Error::NotFound { .. }) if json_path.exists() => Tokenizer::open_json(&json_path),
            vocabulary => Ok(Tokenizer::new(vocabulary?, &path)?.0),
        }
    }

    fn open_json(path: &Path) -> Result<Tokenizer> {
        let file = TokenizerJson::read(path)?;
        let (tokenizer, merges) = Tokenizer::new(file.vocabulary(path)?, path)?;
        file.check(&merges, &tokenizer.specials, path)?;
        Ok(tokenizer)
    }

    fn new(vocabulary: Vocabulary, path: &Path) -> Result<(Tokenizer, Merges)> {
        let (bpe, merges) = Bpe::new(&vocabulary, path)?;
        let specials = SpecialTokens::new(vocabulary.len() as u32);
        let longest_bytes = vocabulary.longest_bytes();
        Ok((Tokenizer { vocabulary, bpe, specials, longest_bytes }, merges))
    }

    /// Text -> ids.
    ///
    /// The text is brought to NFC first, control tokens' surface forms included. Where the
    /// vocabulary lacks a byte (Qwen's own lacks none), a character with that byte is encoded as
    /// U+FFFD, or dropped if that cannot be written either. Takes time `n log n` at worst, whatever
    /// the text, and a few hundred bytes of memory for each byte of its longest piece.
    pub fn encode(&self, text: &str, specials: Specials) -> Vec<u32> {
        let text = to_nfc(text);
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        let mut rest = &*text;
        while let Some((before, id, after)) = self.next_special(rest, specials) {
            self.encode_ordinary(before, &mut scratch, &mut ids);
            ids.push(id);
            rest = after;
        }
        self.encode_ordinary(rest, &mut scratch, &mut ids);
        ids
    }

    /// No encoding of `text` as text has fewer ids than this; found by its length, so that text
    /// that can never fit is refused before encoding takes memory for it.
    pub(crate) fn fewest_tokens(&self, text: &str) -> usize {
        if self.bpe.drops_text() {
            return 0;
        }
        // A replaced character has at least three quarters of its bytes: within the same bound.
        let composed = if text.is_ascii() { text.len() } else { text.len() / MAX_COMPOSED };
        composed / self.longest_bytes.max(1)
    }

    fn next_special<'a>(
        &self,
        text: &'a str,
        specials: Specials,
    ) -> Option<(&'a str, u32, &'a str)> {
        match specials {
            Specials::AsText => None,
            Specials::Parse => self.specials.cut(text),
        }
    }

    fn encode_ordinary(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let replaced = self.bpe.replace_inexpressible(text);
        for piece in split::pieces(replaced.as_deref().unwrap_or(text)) {
            self.bpe.encode(piece, scratch, ids);
        }
    }

    /// The bytes of `id`: a special's surface form, a token's bytes; `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.get(id).or_else(|| self.specials.surface(id).map(str::as_bytes))
    }

    /// The bytes of every id, `[num_tokens]`; of a special token none.
    pub fn ordinary_tokens(&self) -> Vec<Vec<u8>> {
        let ids = 0..self.num_tokens() as u32;
        ids.map(|id| self.vocabulary.get(id).unwrap_or_default().to_vec()).collect()
    }

    /// The bytes of a sequence of ids; ids outside the vocabulary give nothing, specials only when
    /// `keep_specials`.
    pub fn decode_bytes(&self, ids: &[u32], keep_specials: bool) -> Vec<u8> {
        let shown = ids.iter().filter(|&&id| keep_specials || !self.is_special(id));
        shown.filter_map(|&id| self.token_bytes(id)).flatten().copied().collect()
    }

    /// The id of a special token by its surface form.
    pub fn special_id(&self, surface: &str) -> Option<u32> {
        self.specials.id(surface)
    }

    /// Is `id` a special token?
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.surface(id).is_some()
    }

    /// Ids in use: 0..num_tokens (ordinary and special).
    pub fn num_tokens(&self) -> usize {
        self.vocabulary.len() + self.specials.len()
    }

    /// `<|endoftext|>`.
    pub fn end_of_text(&self) -> u32 {
        self.specials.at(END_OF_TEXT)
    }

    /// `<|im_start|>`.
    pub fn im_start(&self) -> u32 {
        self.specials.at(IM_START)
    }

    /// `<|im_end|>`.
    pub fn im_end(&self) -> u32 {
        self.specials.at(IM_END)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("num_tokens", &self.num_tokens()).finish_non_exhaustive()
    }
}

/// `text` in Unicode's composed form; borrowed where a quick look says that it is so already.
fn to_nfc(text: &str) -> Cow<'_, str> {
    match text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.nfc().collect()),
    }
}
