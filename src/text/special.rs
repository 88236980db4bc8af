//! The 208 control tokens of Qwen-1, their ids and their surface forms.
//!
//! What it is: the table `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`, `<|extra_0|>` to
//! `<|extra_204|>`, with ids that follow the ordinary tokens, and the search for surface forms in
//! text. What it is not: a policy; whether text is searched at all is the caller's choice.

use std::collections::HashMap;

/// `<|extra_0|>` to `<|extra_204|>`.
const NUM_EXTRA: usize = 205;

/// Every surface form starts and ends so; between them is neither.
const OPEN: &str = "<|";
const CLOSE: &str = "|>";

/// Offsets from the first special id.
pub(super) const END_OF_TEXT: u32 = 0;
pub(super) const IM_START: u32 = 1;
pub(super) const IM_END: u32 = 2;

/// The control tokens of one vocabulary.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    first_id: u32,
    /// Surface forms in id order.
    surfaces: Vec<String>,
    ids: HashMap<String, u32>,
    longest_bytes: usize,
}

impl SpecialTokens {
    /// The control tokens whose ids start at `first_id`.
    pub(super) fn new(first_id: u32) -> SpecialTokens {
        let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from);
        let extra = (0..NUM_EXTRA).map(|index| format!("<|extra_{index}|>"));
        let surfaces: Vec<String> = named.into_iter().chain(extra).collect();
        let ids = surfaces.iter().cloned().zip(first_id..).collect();
        let longest_bytes = surfaces.iter().map(String::len).max().unwrap_or(0);
        SpecialTokens { first_id, surfaces, ids, longest_bytes }
    }

    /// The id with this offset from the first.
    pub(super) fn at(&self, offset: u32) -> u32 {
        self.first_id + offset
    }

    /// The number of control tokens.
    pub(super) fn len(&self) -> usize {
        self.surfaces.len()
    }

    /// The id of a surface form.
    pub(super) fn id(&self, surface: &str) -> Option<u32> {
        self.ids.get(surface).copied()
    }

    /// The surface form of `id`, if it is a control token.
    pub(super) fn surface(&self, id: u32) -> Option<&str> {
        let index = id.checked_sub(self.first_id)? as usize;
        self.surfaces.get(index).map(String::as_str)
    }

    /// Cuts `text` at its first surface form: what is before, the id, what is after. No form is the
    /// start of another, so the first is also the longest there.
    pub(super) fn cut<'a>(&self, text: &'a str) -> Option<(&'a str, u32, &'a str)> {
        text.match_indices(OPEN).find_map(|(start, _)| {
            let (before, rest) = text.split_at(start);
            let end = start_of_close(rest, self.longest_bytes)? + CLOSE.len();
            let (surface, after) = rest.split_at(end);
            Some((before, self.id(surface)?, after))
        })
    }
}

/// Where the first `|>` after the opening starts, within the first `limit_bytes` of `text`: the
/// limit keeps a text of nothing but openings from being read again from each of them.
fn start_of_close(text: &str, limit_bytes: usize) -> Option<usize> {
    let window = text.as_bytes().get(..limit_bytes).unwrap_or(text.as_bytes());
    let after_open = window.get(OPEN.len()..)?;
    let found = after_open.windows(CLOSE.len()).position(|pair| pair == CLOSE.as_bytes());
    found.map(|position| position + OPEN.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_surfaces() {
        let specials = SpecialTokens::new(1000);
        assert_eq!(specials.len(), 208);
        assert_eq!(specials.id("<|endoftext|>"), Some(1000));
        assert_eq!(specials.id("<|extra_204|>"), Some(1207));
        assert_eq!(specials.id("<|extra_205|>"), None);
        assert_eq!(specials.surface(1002), Some("<|im_end|>"));
        assert_eq!(specials.surface(1208), None);
        assert_eq!(specials.surface(999), None);
        assert_eq!(specials.at(IM_END), 1002);
    }

    #[test]
    fn cuts_at_the_first_form() {
        let specials = SpecialTokens::new(0);
        assert_eq!(specials.cut("a<|im_end|>b<|im_start|>"), Some(("a", 2, "b<|im_start|>")));
        assert_eq!(specials.cut("<|<|extra_10|>"), Some(("<|", 13, "")));
        assert_eq!(specials.cut("<|im_end|<|im_end|>|>"), Some(("<|im_end|", 2, "|>")));
        assert_eq!(specials.cut("<|extra_205|> <|IM_END|> <| im_end|> <|> <||>"), None);
        assert_eq!(specials.cut("<|中文中文中文中文中文|>"), None);
        assert_eq!(specials.cut(""), None);
    }
}
