//! Opening the files of a checkpoint folder, with limits. Parses nothing.
//!
//! Paths come from the user and from the checkpoint's index; bytes go to the header parser, to
//! the JSON readers and, as shared owners, into every `HostTensor`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::Source;
use crate::error::{Error, Result};
use crate::tensor::ByteOwner;

/// An opened regular file and its length when it was opened.
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) len_bytes: u64,
}

/// Opens `path`, which must be a regular file: opening a named pipe would wait for a writer.
pub(super) fn open(path: &Path) -> Result<OpenFile> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "open", &e))?;
    if !metadata.is_file() {
        return Err(Error::corrupt(path, "not a regular file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", &e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, "open", &e))?;
    Ok(OpenFile { file, len_bytes: metadata.len() })
}

/// Reads the next `len` bytes of `file` in full. The length is the caller's to bound; running out
/// of memory is an error, not an abort.
pub(super) fn read(
    path: &Path,
    file: &mut File,
    len: usize,
    purpose: &'static str,
) -> Result<Vec<u8>> {
    let mut bytes = reserve(len, purpose)?;
    let got = file
        .by_ref()
        .take(len as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read", &e))?;
    if got < len {
        return Err(Error::corrupt(path, format!("the file ends {} bytes early", len - got)));
    }
    Ok(bytes)
}

/// The whole of a small text file, refused over `limit_bytes`.
pub fn read_small(path: &Path, limit_bytes: usize, purpose: &'static str) -> Result<Vec<u8>> {
    let mut opened = open(path)?;
    let len = usize::try_from(opened.len_bytes).unwrap_or(usize::MAX);
    if len > limit_bytes {
        return Err(Error::corrupt(path, format!("{len} bytes are over the limit {limit_bytes}")));
    }
    read(path, &mut opened.file, len, purpose)
}

/// Byte offset in `json` that `error` speaks of (serde_json counts lines and columns from 1).
pub fn json_offset(json: &[u8], error: &serde_json::Error) -> u64 {
    let before = error.line().saturating_sub(1);
    let lines = json.split(|&byte| byte == b'\n').take(before);
    let start: usize = lines.map(|line| line.len() + 1).sum();
    (start + error.column().saturating_sub(1)) as u64
}

/// An empty vector with room for `len` bytes, or a typed out-of-memory error.
pub(super) fn reserve(len: usize, purpose: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Error::OutOfHostMemory {
        purpose,
        needed_bytes: len as u64,
        available_bytes: None,
    })?;
    Ok(bytes)
}

/// The tensor bytes of a shard and where they start in the owner.
pub(super) struct Data {
    pub(super) owner: ByteOwner,
    pub(super) start: usize,
}

/// Brings in `path`'s `data_len` bytes of tensors, which follow the header; `opened` stands at
/// their first byte, `data_offset` from the start of the file.
pub(super) fn data(
    path: &Path,
    opened: OpenFile,
    data_offset: usize,
    data_len: usize,
    source: Source,
) -> Result<Data> {
    let data = match source {
        Source::Map => Data { owner: map(path, &opened.file)?, start: data_offset },
        Source::Copy => copy(path, opened.file, data_len)?,
    };
    // The file may have been cut since its length was taken.
    if (*data.owner).as_ref().len().saturating_sub(data.start) < data_len {
        return Err(Error::corrupt(path, "the file shrank while it was opened"));
    }
    Ok(data)
}

#[allow(unsafe_code, reason = "a memory map is the only way to share weights between processes")]
fn map(path: &Path, file: &File) -> Result<ByteOwner> {
    // SAFETY: the map is read-only and private; the documented contract of `Source::Map` has the
    // user promise that nobody shortens or rewrites the file while the checkpoint is open.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|e| Error::io(path, "map", &e))?;
    Ok(Arc::new(map))
}

/// Reads the tensors to the heap, the first one at a 64-byte boundary for vector loads.
fn copy(path: &Path, mut file: File, data_len: usize) -> Result<Data> {
    const ALIGN_BYTES: usize = 64;
    let mut bytes = reserve(data_len.saturating_add(ALIGN_BYTES), "a copy of the weights")?;
    let start = bytes.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
    bytes.resize(start, 0);
    file.by_ref()
        .take(data_len as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read", &e))?;
    Ok(Data { owner: Arc::new(bytes), start })
}
