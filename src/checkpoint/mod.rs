//! Safetensors shards and their index, memory-mapped, as bounds-checked `HostTensor`s.
//!
//! Opening checks everything that can be checked without reading a weight: the index, each
//! header, every offset, every model tensor's dtype. What comes out are windows into the files.
//! Not here: what shapes a model needs (the caller says) and how ranks divide them (`shard`).

pub mod files;
mod header;
mod index;
pub mod names;
mod quantised;
pub mod shard;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tensor::{ByteOwner, Dtype, HostTensor, Span};
use names::{QuantPart, Role};
use shard::Slice;

/// How a checkpoint's bytes come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// Memory map, shared with other processes. The files must not be shortened or rewritten
    /// while the checkpoint is open: the operating system would end the process (SIGBUS). Each file
    /// stays open as well, for those who read it rather than the map, as loads to a GPU do.
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
    element: Element,
    shape: Vec<u64>,
    /// Bytes in the data section of the file.
    range: Range<usize>,
}

/// What a tensor's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Float(Dtype),
    /// 32-bit integers: codes and indices of quantised linears.
    Word,
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
        checkpoint.check_parts()?;
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
        let owner = files::map(path, opened.file, data_offset, data_len)?;
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
        let role = names::role(&entry.name);
        let expected = match role {
            Role::Ignored => return Ok(()),
            Role::Unknown => return Err(unknown_name(path, &entry.name)),
            Role::Quantised(QuantPart::Codes | QuantPart::Zeros | QuantPart::Groups) => "I32",
            Role::Quantised(QuantPart::Scales) => "F16",
            Role::Quantised(QuantPart::Bias) | Role::Model => "BF16, F16 or F32",
        };
        let element = element_of(&entry.dtype).filter(|_| expected.contains(&entry.dtype));
        let Some(element) = element else {
            let reason = format!("it is {}, expected {expected}", entry.dtype);
            return Err(Error::Unsupported { path: path.into(), field: entry.name, reason });
        };
        let offset = Some((data_offset + entry.range.start) as u64);
        if entry.range.is_empty() {
            return Err(fault(path, &entry.name, offset, "it has no elements".into()));
        }
        let place = Place { file, element, shape: entry.shape, range: entry.range };
        match self.places.insert(entry.name.clone(), place) {
            Some(_) => Err(fault(path, &entry.name, offset, "it is in another shard too".into())),
            None => Ok(()),
        }
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the checkpoint has a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Names of all model tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Bytes of tensor `name`.
    pub fn num_bytes(&self, name: &str) -> Result<u64> {
        Ok(self.place(name)?.range.len() as u64)
    }

    /// Bytes of all model tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.places.values().map(|place| place.range.len() as u64).sum()
    }

    /// Dtype and `[rows, cols]` of checkpoint tensor `name` (a vector `[n]` is `[n, 1]`).
    pub fn shape(&self, name: &str) -> Result<(Dtype, usize, usize)> {
        let place = self.place(name)?;
        let (rows, cols) = self.extents(name, place)?;
        match place.element {
            Element::Float(dtype) => Ok((dtype, rows, cols)),
            // `add_entry` lets words in under the names of parts only.
            Element::Word => Err(self.misfit(name, place, "one of floating-point numbers")),
        }
    }

    /// `[rows, cols]` of a tensor; a vector `[n]` is `[n, 1]`.
    fn extents(&self, name: &str, place: &Place) -> Result<(usize, usize)> {
        let size = |n: u64| usize::try_from(n).ok();
        let (rows, cols) = match place.shape[..] {
            [rows] => (size(rows), Some(1)),
            [rows, cols] => (size(rows), size(cols)),
            _ => (None, None),
        };
        rows.zip(cols).ok_or_else(|| self.misfit(name, place, "a vector or a matrix"))
    }

    /// Tensor `name`, whose shape must be `[rows, cols]`, cut to `slice`. No copy where the slice
    /// lies together in the file.
    pub fn tensor(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        slice: &Slice,
    ) -> Result<HostTensor> {
        let tensor = self.tensor_in_place(name, rows, cols, slice)?;
        if !tensor.span().is_cut() {
            return Ok(tensor);
        }
        let bytes = files::join(tensor.span())?;
        Ok(HostTensor::from_vec(tensor.dtype(), tensor.rows(), tensor.cols(), bytes))
    }

    /// The same without any copy: its bytes may be in pieces, for whoever reads them from the file.
    pub fn tensor_in_place(
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
        let element = (cols, dtype.size_bytes());
        let rows = slice.row_ranges.iter().cloned().flatten();
        let span = self.cut(place, element, rows, std::slice::from_ref(&slice.cols));
        Ok(HostTensor::of_span(dtype, slice.num_rows(), slice.cols.len(), span))
    }

    /// Some columns of some rows of the matrix at `place`, of `cols` columns, elements of `size` bytes.
    fn cut(
        &self,
        place: &Place,
        (cols, size): (usize, usize),
        rows: impl Iterator<Item = usize>,
        col_ranges: &[Range<usize>],
    ) -> Span {
        let (owner, bytes) = self.bytes(place);
        let pieces = rows.flat_map(|row| {
            let start = bytes.start + row * cols * size;
            col_ranges.iter().map(move |range| start + range.start * size..start + range.end * size)
        });
        Span::of_pieces(owner.clone(), pieces)
    }

    /// As `tensor`, for a few bytes that are looked at while loading (norms, biases): a tensor that owns
    /// them, read from the file.
    pub fn small_tensor(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        slice: &Slice,
    ) -> Result<HostTensor> {
        let part = self.tensor_in_place(name, rows, cols, slice)?;
        let bytes = files::load(part.span())?;
        Ok(HostTensor::from_vec(part.dtype(), part.rows(), part.cols(), bytes))
    }

    /// The bytes of all tensors, in the order in which they lie in the files.
    pub fn spans(&self) -> Vec<Span> {
        let mut places: Vec<&Place> = self.places.values().collect();
        places.sort_by_key(|place| (place.file, place.range.start));
        let span = |place| {
            let (owner, bytes) = self.bytes(place);
            Span::new(owner.clone(), bytes)
        };
        places.into_iter().map(span).collect()
    }

    /// The bytes of a tensor: a range of what owns them.
    fn bytes(&self, place: &Place) -> (&ByteOwner, Range<usize>) {
        let shard = &self.files[place.file];
        let start = shard.data_start + place.range.start;
        (&shard.owner, start..start + place.range.len())
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

fn unknown_name(path: &Path, name: &str) -> Error {
    let reason = "no tensor of a Qwen-1 model has this name".to_string();
    Error::Unsupported { path: path.into(), field: name.to_string(), reason }
}

fn element_of(name: &str) -> Option<Element> {
    match name {
        "BF16" => Some(Element::Float(Dtype::Bf16)),
        "F16" => Some(Element::Float(Dtype::F16)),
        "F32" => Some(Element::Float(Dtype::F32)),
        "I32" => Some(Element::Word),
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

fn fault(path: &Path, tensor: &str, offset_bytes: Option<u64>, reason: String) -> Error {
    Error::Corrupt {
        path: path.to_path_buf(),
        tensor: Some(tensor.to_string()),
        offset_bytes,
        reason,
    }
}
