//! Text in and out: tokenizer, chat format, streaming detokeniser, stop texts. Pure; no device.
//!
//! Stand-in of this branch for the streaming detokeniser: whole ASCII and UTF-8 text only.

pub mod chat;
pub mod tokenizer;

/// What one push made ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextDelta {
    /// Whole characters.
    pub text: String,
    /// The same, verbatim.
    pub bytes: Vec<u8>,
    /// A stop text was met; nothing more will come.
    pub stopped: bool,
}

/// Bytes of tokens -> whole characters, stop texts held back.
pub struct TextStream {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends at the first of `stops`.
    pub fn new(stops: &[String]) -> TextStream {
        let stops = stops.iter().map(|stop| stop.clone().into_bytes()).collect();
        TextStream { stops, held: Vec::new(), stopped: false }
    }

    /// Adds the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> TextDelta {
        if self.stopped {
            return TextDelta::default();
        }
        self.held.extend_from_slice(bytes);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.windows(stop.len()).position(|window| window == stop))
            .min();
        if let Some(at) = found {
            self.stopped = true;
            self.held.truncate(at);
            return self.release(at);
        }
        let tail = |stop: &Vec<u8>| {
            (1..stop.len()).rev().find(|&n| self.held.ends_with(&stop[..n])).unwrap_or(0)
        };
        let keep = self.stops.iter().map(tail).max().unwrap_or(0);
        let ready = self.held.len() - keep;
        let whole = match std::str::from_utf8(&self.held[..ready]) {
            Ok(_) => ready,
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => ready,
        };
        self.release(whole)
    }

    /// Gives what was held back.
    pub fn finish(&mut self) -> TextDelta {
        self.release(self.held.len())
    }

    fn release(&mut self, count: usize) -> TextDelta {
        let bytes: Vec<u8> = self.held.drain(..count).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        TextDelta { text, bytes, stopped: self.stopped }
    }
}
