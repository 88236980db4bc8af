//! The header of one safetensors file: parsed, and checked against the file's length.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | header length `n`, little-endian |
//! | 8 | n | JSON: tensor name -> `dtype`, `shape`, `data_offsets` (and `__metadata__`) |
//! | 8 + n | rest | the tensors' bytes, end to end, no gaps |
//!
//! Our own parser rather than the `safetensors` crate's, because errors here name the tensor and
//! the byte, and a name listed twice is an error. Knows no tensor by name and reads no weights.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::files::{self, OpenFile};
use crate::error::{Error, Result};

/// Longest header accepted, as in the format's own reference implementation.
const LIMIT_HEADER_BYTES: u64 = 100_000_000;
/// Size of the length field.
const LENGTH_BYTES: u64 = 8;
/// The entry that is no tensor.
const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// As spelled in the file, for example `BF16`.
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    /// Bytes in the data section; checked to be inside it.
    pub(super) range: Range<usize>,
}

/// A checked header: the entries tile the data section exactly.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) entries: Vec<Entry>,
    /// First byte of the data section in the file.
    pub(super) data_offset: usize,
    /// Bytes of the data section: up to the end of the file.
    pub(super) data_len: usize,
}

/// Reads and checks the header of `opened`, leaving it at the first byte of the data section.
pub(super) fn read(path: &Path, opened: &mut OpenFile) -> Result<Header> {
    let file_len = opened.len_bytes;
    if file_len < LENGTH_BYTES {
        return Err(at(path, None, 0, format!("a file of {file_len} bytes has no header")));
    }
    let field = files::read(path, &mut opened.file, LENGTH_BYTES as usize, "a header")?;
    let header_len = field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    if header_len > LIMIT_HEADER_BYTES {
        let reason = format!("a header of {header_len} bytes is over {LIMIT_HEADER_BYTES}");
        return Err(at(path, None, 0, reason));
    }
    let data_offset = LENGTH_BYTES + header_len;
    if data_offset > file_len {
        let reason = format!("a header of {header_len} bytes in a file of {file_len}");
        return Err(at(path, None, 0, reason));
    }
    // At most 100 MB, so it fits any usize this library is built for.
    let json = files::read(path, &mut opened.file, header_len as usize, "a header")?;
    let data_len = usize::try_from(file_len - data_offset)
        .map_err(|_| at(path, None, 0, "the file is larger than the address space".into()))?;
    let entries = entries(path, &json, data_offset as usize, data_len)?;
    Ok(Header { entries, data_offset: data_offset as usize, data_len })
}

/// The entries in the order of their bytes, checked to tile the data section.
fn entries(path: &Path, json: &[u8], data_offset: usize, data_len: usize) -> Result<Vec<Entry>> {
    let pairs: Pairs<RawEntry> =
        serde_json::from_slice(json).map_err(|error| bad_json(path, json, &error))?;
    let pairs = pairs.0.into_iter();
    let mut entries = pairs
        .map(|(name, raw)| entry(path, name, raw, data_offset, data_len))
        .collect::<Result<Vec<Entry>>>()?;
    reject_repeats(path, &entries)?;
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    let mut end = 0;
    for entry in &entries {
        let start = entry.range.start;
        if start != end {
            let fault = if start < end { "overlaps the tensor before it" } else { "follows a gap" };
            let reason = format!("{fault}: it starts at {start} of the data, expected {end}");
            return Err(at(path, Some(&entry.name), (data_offset + start) as u64, reason));
        }
        end = entry.range.end;
    }
    if end != data_len {
        let reason = format!("{} bytes after the last tensor", data_len - end);
        return Err(at(path, None, (data_offset + end) as u64, reason));
    }
    Ok(entries)
}

/// Checks one entry's offsets against the data section and, for known dtypes, its shape.
fn entry(
    path: &Path,
    name: String,
    raw: RawEntry,
    data_offset: usize,
    data_len: usize,
) -> Result<Entry> {
    let [begin, end] = raw.data_offsets;
    let place = (data_offset as u64).saturating_add(begin);
    if begin > end || end > data_len as u64 {
        let reason = format!("offsets {begin}..{end} are outside the {data_len} bytes of data");
        return Err(at(path, Some(&name), place, reason));
    }
    let found = end - begin;
    if let Some(bits) = element_bits(&raw.dtype) {
        let needed = raw.shape.iter().try_fold(bits, |size, &n| size.checked_mul(n));
        if needed != found.checked_mul(8) {
            let (dtype, shape) = (&raw.dtype, &raw.shape);
            let reason = format!("{found} bytes do not hold {dtype} of shape {shape:?}");
            return Err(at(path, Some(&name), place, reason));
        }
    }
    // Both are at most data_len, a usize.
    let range = begin as usize..end as usize;
    Ok(Entry { name, dtype: raw.dtype, shape: raw.shape, range })
}

/// Bits of one element of the format's common dtypes; others are judged by whoever uses them.
fn element_bits(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => Some(8),
        "BF16" | "F16" | "I16" | "U16" => Some(16),
        "F32" | "I32" | "U32" => Some(32),
        "F64" | "I64" | "U64" => Some(64),
        _ => None,
    }
}

fn reject_repeats(path: &Path, entries: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(at(path, Some(pair[0]), LENGTH_BYTES, "listed twice".into())),
        None => Ok(()),
    }
}

/// A JSON syntax or type error, at its byte in the file.
fn bad_json(path: &Path, json: &[u8], error: &serde_json::Error) -> Error {
    at(path, None, LENGTH_BYTES + files::json_offset(json, error), format!("bad JSON: {error}"))
}

fn at(path: &Path, tensor: Option<&str>, offset_bytes: u64, reason: String) -> Error {
    Error::Corrupt {
        path: path.to_path_buf(),
        tensor: tensor.map(str::to_string),
        offset_bytes: Some(offset_bytes),
        reason,
    }
}

/// An entry as written; unknown keys are passed over.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A JSON object as its pairs in order, so that a key written twice can be seen. The value of
/// `__metadata__`, for which the library has no use, is passed over.
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(
        self,
        mut map: M,
    ) -> std::result::Result<Self::Value, M::Error> {
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else {
                pairs.push((name, map.next_value()?));
            }
        }
        Ok(Pairs(pairs))
    }
}
