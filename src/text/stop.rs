//! Stop texts in a stream of bytes: has one ended, and how much of the end may still become one?
//!
//! What it is: one Knuth-Morris-Pratt automaton per stop text. Its state, how many bytes of the
//! stop text the stream now ends with, is exactly what must be held back, so the cost per byte is
//! constant and the answer cannot depend on how the stream is cut. What it is not: a buffer; the
//! bytes stay with the caller.

/// The stop texts of one reply and how far each is matched.
#[derive(Debug, Clone)]
pub(super) struct StopTexts {
    stops: Vec<StopText>,
}

#[derive(Debug, Clone)]
struct StopText {
    bytes: Vec<u8>,
    /// `fallback[i]`: the longest proper prefix of `bytes` that is also a suffix of `bytes[..=i]`.
    fallback: Vec<usize>,
    /// How many bytes of the stop text the stream now ends with; less than all of them.
    matched_bytes: usize,
}

impl StopTexts {
    /// Empty texts are left out: they would end every reply before it began.
    pub(super) fn new(stops: &[String]) -> StopTexts {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        StopTexts { stops: stops.map(|stop| StopText::new(stop.as_bytes())).collect() }
    }

    /// Takes the stream's next byte; the length in bytes of the stop text that ends with it. Where
    /// several end there, the longest, so that no stop text is left behind in part.
    pub(super) fn advance(&mut self, byte: u8) -> Option<usize> {
        self.stops.iter_mut().filter_map(|stop| stop.advance(byte)).max()
    }

    /// How many of the stream's last bytes may be the start of a stop text.
    pub(super) fn held_bytes(&self) -> usize {
        self.stops.iter().map(|stop| stop.matched_bytes).max().unwrap_or(0)
    }
}

impl StopText {
    fn new(bytes: &[u8]) -> StopText {
        let mut stop = StopText { bytes: bytes.to_vec(), fallback: Vec::new(), matched_bytes: 0 };
        stop.fallback.push(0);
        for &byte in &bytes[1..] {
            stop.matched_bytes = stop.longest_with(byte);
            stop.fallback.push(stop.matched_bytes);
        }
        stop.matched_bytes = 0;
        stop
    }

    /// The longest prefix of the stop text that ends the stream once `byte` is added.
    fn longest_with(&self, byte: u8) -> usize {
        let mut matched = self.matched_bytes;
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.fallback[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }

    fn advance(&mut self, byte: u8) -> Option<usize> {
        let matched = self.longest_with(byte);
        let ended = matched == self.bytes.len();
        self.matched_bytes = if ended { self.fallback[matched - 1] } else { matched };
        ended.then_some(matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the first stop text ends in `text`, and its length.
    fn first_end(stops: &[&str], text: &str) -> Option<(usize, usize)> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stops = StopTexts::new(&stops);
        let mut bytes = text.bytes().enumerate();
        bytes.find_map(|(index, byte)| Some((index + 1, stops.advance(byte)?)))
    }

    #[test]
    fn finds_the_first_to_end() {
        assert_eq!(first_end(&["aab"], "aaaab"), Some((5, 3)));
        assert_eq!(first_end(&["abac", "ba"], "xabac"), Some((4, 2)));
        assert_eq!(first_end(&["b", "ab"], "xab"), Some((3, 2)));
        assert_eq!(first_end(&["ababx"], "abababx"), Some((7, 5)));
        assert_eq!(first_end(&["\n\n"], "a\nb\n"), None);
        assert_eq!(first_end(&["", "x"], "abc"), None);
        assert_eq!(first_end(&[], "abc"), None);
    }

    #[test]
    fn holds_what_may_become_a_stop_text() {
        let mut stops = StopTexts::new(&["Observation:".into(), "servant".into()]);
        let held: Vec<usize> = b"Obsersx"
            .iter()
            .map(|&byte| {
                assert_eq!(stops.advance(byte), None);
                stops.held_bytes()
            })
            .collect();
        assert_eq!(held, [1, 2, 3, 4, 5, 1, 0]);
    }
}
