//! Byte-pair encoding of short pieces, by scanning.
//!
//! What it is: the same merges as `bpe`'s model, found by reading through the few parts of a piece
//! instead of keeping a heap and building strings. On Chinese, where most pieces are clauses and no
//! token by themselves, the model alone runs at 0.7 of Python `tiktoken`'s speed
//! (`benches/tokenizer.rs`). What it is not: fit for long pieces; its time is quadratic in their
//! length, so `bpe` gives it none above [`MAX_PIECE_BYTES`].

use ahash::AHashMap;

/// The longest piece taken: longer than a clause, short enough that the scans stay cheap.
pub(super) const MAX_PIECE_BYTES: usize = 256;

/// No such id, no such merge. Larger than any rank, so that it is never the lowest.
const NONE: u32 = u32::MAX;

/// The ids of single bytes, and of pairs that merge. A merge's rank is the id it gives.
pub(super) struct Pairs {
    byte_ids: [u32; 256],
    /// By `key`.
    merged: AHashMap<u64, u32>,
}

/// Working memory, kept between calls.
#[derive(Default)]
pub(super) struct Parts {
    ids: Vec<u32>,
    /// `ranks[i]`: what parts `i` and `i + 1` merge to, or `NONE`.
    ranks: Vec<u32>,
}

impl Pairs {
    /// From the id of each byte, where it has one, and merges as `((left, right), merged)` ids.
    pub(super) fn new(
        byte_ids: [Option<u32>; 256],
        merges: impl Iterator<Item = ((u32, u32), u32)>,
    ) -> Pairs {
        let merged = merges.map(|((left, right), id)| (key(left, right), id)).collect();
        Pairs { byte_ids: byte_ids.map(|id| id.unwrap_or(NONE)), merged }
    }

    /// Is `byte` a token by itself?
    pub(super) fn has_byte(&self, byte: u8) -> bool {
        self.byte_ids[usize::from(byte)] != NONE
    }

    /// Appends the ids of `piece`, each of whose bytes must be a token.
    pub(super) fn encode(&self, piece: &[u8], parts: &mut Parts, ids: &mut Vec<u32>) {
        parts.ids.clear();
        parts.ids.extend(piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
        parts.ranks.clear();
        parts.ranks.extend(parts.ids.windows(2).map(|pair| self.rank(pair[0], pair[1])));
        while let Some((part, id)) = lowest(&parts.ranks) {
            self.merge(parts, part, id);
        }
        ids.extend_from_slice(&parts.ids);
    }

    /// Makes parts `part` and `part + 1` the one part `id`.
    fn merge(&self, parts: &mut Parts, part: usize, id: u32) {
        let Parts { ids, ranks } = parts;
        ids[part] = id;
        ids.remove(part + 1);
        ranks.remove(part);
        if let Some(rank) = ranks.get_mut(part) {
            *rank = self.rank(id, ids[part + 1]);
        }
        if part > 0 {
            ranks[part - 1] = self.rank(ids[part - 1], id);
        }
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.merged.get(&key(left, right)).copied().unwrap_or(NONE)
    }
}

/// A pair as one word, which hashes faster than two.
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The first of the lowest ranks, and that rank. Two plain passes: the compiler makes both of them
/// vector code.
fn lowest(ranks: &[u32]) -> Option<(usize, u32)> {
    let rank = ranks.iter().copied().min().filter(|&rank| rank != NONE)?;
    Some((ranks.iter().position(|&other| other == rank)?, rank))
}
