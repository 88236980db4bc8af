//! Opening the files of a checkpoint folder, with limits. Parses nothing.
//!
//! Paths come from the user and from the checkpoint's index; bytes go to the header parser, to
//! the JSON readers and, as shared owners, into every `HostTensor`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{ByteOwner, Bytes, Span, StoredFile};

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

/// A file in memory, as the system maps it.
struct Mapped {
    map: memmap2::Mmap,
    file: StoredFile,
}

impl Bytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn file(&self) -> Option<&StoredFile> {
        Some(&self.file)
    }
}

/// Bytes of a file, read into memory.
struct Copied(memmap2::Mmap);

impl Bytes for Copied {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Maps the file, which must still hold `data_len` bytes of tensors at `data_offset`.
#[allow(unsafe_code, reason = "a memory map is the only way to share weights between processes")]
pub(super) fn map(
    path: &Path,
    file: File,
    data_offset: usize,
    data_len: usize,
) -> Result<ByteOwner> {
    // SAFETY: the map is read-only and private; the documented contract of `Source::Map` has the
    // user promise that nobody shortens or rewrites the file while the checkpoint is open.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "map", &e))?;
    // The file may have been cut since its length was taken.
    if map.len().saturating_sub(data_offset) < data_len {
        return Err(Error::corrupt(path, "the file shrank while it was opened"));
    }
    let metadata = file.metadata().map_err(|e| Error::io(path, "map", &e))?;
    let identity = (metadata.dev(), metadata.ino());
    Ok(Arc::new(Mapped { map, file: StoredFile { path: path.to_path_buf(), file, identity } }))
}

/// The bytes of `span` as memory of this process: where they are mapped, they are read from the file, so
/// that one cut short meanwhile is an error; a look at the map would end the process.
pub(super) fn load(span: &Span) -> Result<Vec<u8>> {
    let Some(stored) = span.owner().file() else { return join(span) };
    let mut bytes = reserve(span.num_bytes(), "a part of the weights")?;
    bytes.resize(span.num_bytes(), 0);
    let mut got = 0;
    for range in span.ranges() {
        let to = &mut bytes[got..got + range.len()];
        let read = stored.file.read_exact_at(to, range.start as u64);
        read.map_err(|error| Error::read(&stored.path, &error))?;
        got += range.len();
    }
    Ok(bytes)
}

/// The bytes of `span`, out of memory or a map.
pub(super) fn join(span: &Span) -> Result<Vec<u8>> {
    let mut bytes = reserve(span.num_bytes(), "a slice of a tensor")?;
    for range in span.ranges() {
        bytes.extend_from_slice(&span.owner().bytes()[range]);
    }
    Ok(bytes)
}

/// Bytes read between two reports of progress.
const CHUNK_BYTES: usize = 16 << 20;

/// Reads `data_len` bytes of `path` from `data_offset` on into memory of this process, in huge
/// pages where the system has them: streaming reads are faster from those (AMD EPYC Zen 4, two
/// cores, 2026-11-23: 33-43 GB/s against 28-30 GB/s from a mapped file and 25 GB/s from small
/// pages). `progress` gets the bytes of each chunk; `false` cancels.
pub(super) fn copy(
    path: &Path,
    data_offset: usize,
    data_len: usize,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<ByteOwner> {
    let mut file = open(path)?.file;
    let start = SeekFrom::Start(data_offset as u64);
    file.seek(start).map_err(|e| Error::io(path, "read", &e))?;
    let no_memory = |_| Error::OutOfHostMemory {
        purpose: "a copy of the weights",
        needed_bytes: data_len as u64,
        available_bytes: None,
    };
    // A map of no bytes is an error to the system.
    let mut memory = memmap2::MmapMut::map_anon(data_len.max(1)).map_err(no_memory)?;
    #[cfg(target_os = "linux")]
    // Only speed depends on it: some systems are built without huge pages.
    let _ = memory.advise(memmap2::Advice::HugePage);
    for chunk in memory[..data_len].chunks_mut(CHUNK_BYTES) {
        file.read_exact(chunk).map_err(|error| Error::read(path, &error))?;
        if !progress(chunk.len() as u64) {
            return Err(Error::Cancelled);
        }
    }
    let memory = memory.make_read_only().map_err(|e| Error::io(path, "map", &e))?;
    Ok(Arc::new(Copied(memory)))
}
