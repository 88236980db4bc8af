//! Safetensors shards and their index, memory-mapped, as bounds-checked `HostTensor`s.
//!
//! Opening checks everything that can be checked without reading a weight: the index, each
//! header, every offset, every model tensor's dtype. What comes out are windows into the files.
//! Not here: what shapes a model needs (the caller says) and how ranks divide them (`shard`).

pub mod files;
mod header;
mod index;
pub mod names;
pub mod shard;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tensor::{ByteOwner, Dtype, HostTensor};
use names::Role;
use shard::Slice;

/// How a checkpoint's bytes come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// Memory map, shared with other processes. The files must not be shortened or rewritten
    /// while the checkpoint is open: the operating system would end the process (SIGBUS).
    #[default]
    Map,
    /// Read into memory of this process at open; the files may change afterwards.
    Copy,
}

/// An opened checkpoint folder: every tensor's place is known and checked; with `Source::Map` no
/// weight is read yet. Tensors taken from it stay valid when it is dropped. Shareable by threads.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<OpenShard>,
    places: HashMap<String, Place>,
}

/// One file of the checkpoint.
struct OpenShard {
    path: PathBuf,
    owner: ByteOwner,
    /// First byte of the tensors in `owner`.
    data_start: usize,
    /// First byte of the tensors in the file.
    data_offset: usize,
    /// Bytes of all tensors.
    data_len: usize,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<u64>,
    /// Bytes in the data section of the file.
    range: Range<usize>,
}

impl Checkpoint {
    /// Maps all shards of `folder` and checks headers, index, offsets and overlaps.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(folder, Source::Map)
    }

    /// As `open`, with a choice of how the bytes come into memory.
    pub fn open_with(folder: &Path, source: Source) -> Result<Checkpoint> {
        let layout = index::layout(folder)?;
        let mut checkpoint =
            Checkpoint { folder: folder.to_path_buf(), files: Vec::new(), places: HashMap::new() };
        for (file, listed) in &layout {
            checkpoint.add_file(&folder.join(file), listed)?;
        }
        if source == Source::Copy {
            checkpoint.copy_to_memory(&mut |_| true)?;
        }
        Ok(checkpoint)
    }

    /// Turns a mapped checkpoint into a copied one (`Source::Copy`). `progress` gets the bytes read
    /// since its last call; `false` cancels (`Error::Cancelled`), and the checkpoint is then partly
    /// copied, partly mapped, and as good as before.
    pub fn copy_to_memory(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        for file in &mut self.files {
            file.owner = files::copy(&file.path, file.data_offset, file.data_len, progress)?;
            file.data_start = 0;
        }
        Ok(())
    }

    /// Opens one shard and takes over its tensors; `listed` are those the index expects in it.
    fn add_file(&mut self, path: &Path, listed: &[String]) -> Result<()> {
        let mut opened = files::open(path)?;
        let header = header::read(path, &mut opened)?;
        let (data_offset, data_len) = (header.data_offset, header.data_len);
        let file = self.files.len();
        for entry in header.entries {
            self.add_entry(path, file, data_offset, entry)?;
        }
        let here = |name: &&String| self.places.get(*name).is_none_or(|place| place.file != file);
        if let Some(name) = listed.iter().filter(|name| !is_ignored(name)).find(here) {
            return Err(fault(path, name, None, "the index places it here, but it is not".into()));
        }
        let owner = files::map(path, &opened.file, data_offset, data_len)?;
        let path = path.to_path_buf();
        self.files.push(OpenShard { path, owner, data_start: data_offset, data_offset, data_len });
        Ok(())
    }

    /// Takes over one tensor of a shard, or passes over one that has no part in the arithmetic.
    fn add_entry(
        &mut self,
        path: &Path,
        file: usize,
        data_offset: usize,
        entry: header::Entry,
    ) -> Result<()> {
        match names::role(&entry.name) {
            Role::Ignored => return Ok(()),
            Role::Model => {}
            Role::Unknown => {
                let reason = "no tensor of a Qwen-1 model has this name".to_string();
                return Err(Error::Unsupported { path: path.into(), field: entry.name, reason });
            }
        }
        let Some(dtype) = dtype_of(&entry.dtype) else {
            let reason = format!("it is {}; BF16, F16 and F32 can be read", entry.dtype);
            return Err(Error::Unsupported { path: path.into(), field: entry.name, reason });
        };
        let offset = Some((data_offset + entry.range.start) as u64);
        if entry.range.is_empty() {
            return Err(fault(path, &entry.name, offset, "it has no elements".into()));
        }
        let place = Place { file, dtype, shape: entry.shape, range: entry.range };
        match self.places.insert(entry.name.clone(), place) {
            Some(_) => Err(fault(path, &entry.name, offset, "it is in another shard too".into())),
            None => Ok(()),
        }
    }

    /// Whether the checkpoint has a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Names of all model tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Bytes of all model tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.places.values().map(|place| place.range.len() as u64).sum()
    }

    /// Dtype and `[rows, cols]` of checkpoint tensor `name` (a vector `[n]` is `[n, 1]`).
    pub fn shape(&self, name: &str) -> Result<(Dtype, usize, usize)> {
        let place = self.place(name)?;
        let size = |n: u64| usize::try_from(n).ok();
        let (rows, cols) = match place.shape[..] {
            [rows] => (size(rows), Some(1)),
            [rows, cols] => (size(rows), size(cols)),
            _ => (None, None),
        };
        match (rows, cols) {
            (Some(rows), Some(cols)) => Ok((place.dtype, rows, cols)),
            _ => Err(self.misfit(name, place, "a vector or a matrix")),
        }
    }

    /// Tensor `name`, whose shape must be `[rows, cols]`, cut to `slice`. No copy where the slice
    /// is contiguous in the file: whole rows, in one range.
    pub fn tensor(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        slice: &Slice,
    ) -> Result<HostTensor> {
        let (dtype, found_rows, found_cols) = self.shape(name)?;
        let place = self.place(name)?;
        if (found_rows, found_cols) != (rows, cols) {
            let expected = if cols == 1 { vec![rows] } else { vec![rows, cols] };
            return Err(self.misfit(name, place, &format!("{expected:?}")));
        }
        check_slice(slice, rows, cols)?;
        let shard = &self.files[place.file];
        let start = shard.data_start + place.range.start;
        let row_bytes = cols * dtype.size_bytes();
        if let ([range], true) = (&slice.row_ranges[..], slice.cols == (0..cols)) {
            let bytes = start + range.start * row_bytes..start + range.end * row_bytes;
            return Ok(HostTensor::new(dtype, range.len(), cols, shard.owner.clone(), bytes));
        }
        let end = start + place.range.len();
        gather(dtype, cols, &(*shard.owner).as_ref()[start..end], slice)
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places
            .get(name)
            .ok_or_else(|| fault(&self.folder, name, None, "no shard holds it".into()))
    }

    /// The error of a tensor that has another shape than `expected`.
    fn misfit(&self, name: &str, place: &Place, expected: &str) -> Error {
        let shard = &self.files[place.file];
        let offset = (shard.data_offset + place.range.start) as u64;
        let reason = format!("its shape is {:?}, expected {expected}", place.shape);
        fault(&shard.path, name, Some(offset), reason)
    }
}

fn is_ignored(name: &str) -> bool {
    names::role(name) == Role::Ignored
}

fn dtype_of(name: &str) -> Option<Dtype> {
    match name {
        "BF16" => Some(Dtype::Bf16),
        "F16" => Some(Dtype::F16),
        "F32" => Some(Dtype::F32),
        _ => None,
    }
}

fn check_slice(slice: &Slice, rows: usize, cols: usize) -> Result<()> {
    let inside = |range: &Range<usize>, limit| range.start <= range.end && range.end <= limit;
    if slice.row_ranges.iter().all(|range| inside(range, rows)) && inside(&slice.cols, cols) {
        return Ok(());
    }
    let reason = format!("{slice:?} is outside [{rows}, {cols}]");
    Err(Error::Argument { argument: "slice", reason })
}

/// Copies the rows and columns of `slice` out of a `[rows, cols]` tensor's `bytes`.
fn gather(dtype: Dtype, cols: usize, bytes: &[u8], slice: &Slice) -> Result<HostTensor> {
    let size = dtype.size_bytes();
    let num_rows: usize = slice.row_ranges.iter().map(Range::len).sum();
    let num_cols = slice.cols.len();
    // A slice may name rows twice, so its size is not bounded by the tensor's.
    let needed = num_rows.saturating_mul(num_cols * size);
    let mut owned = files::reserve(needed, "a slice of a tensor")?;
    for row in slice.row_ranges.iter().cloned().flatten() {
        let start = (row * cols + slice.cols.start) * size;
        owned.extend_from_slice(&bytes[start..start + num_cols * size]);
    }
    Ok(HostTensor::from_vec(dtype, num_rows, num_cols, owned))
}

fn fault(path: &Path, tensor: &str, offset_bytes: Option<u64>, reason: String) -> Error {
    Error::Corrupt {
        path: path.to_path_buf(),
        tensor: Some(tensor.to_string()),
        offset_bytes,
        reason,
    }
}
