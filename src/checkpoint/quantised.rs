//! Quantised linears out of a checkpoint: their parts checked against each other, cut to a rank's
//! share, and simplified where the data allows (symmetric zeros, groups in order, biases of zero).
//!
//! The layout is described in `quant`. Codes and scales of whole matrices, or of whole rows, are windows
//! into the file, or cut out of it. What is looked at here (zero points, groups, biases) is read from the
//! file instead, as `files::load` says why.

use std::ops::Range;
use std::sync::Arc;

use super::names::{self, QuantPart, Role};
use super::shard::Slice;
use super::{Checkpoint, Place, check_slice, fault, files, unknown_name};
use crate::error::{Error, Result};
use crate::quant::{Groups, QuantConfig, QuantTensor};
use crate::tensor::{Dtype, HostTensor, HostWords, Span};

/// Bytes of a word, and of a scale.
const WORD_BYTES: usize = 4;
const SCALE_BYTES: usize = 2;

/// Where a part of a linear is, and its extents.
struct Part<'a> {
    name: String,
    place: &'a Place,
    cols: usize,
}

impl Checkpoint {
    /// Is any linear quantised?
    pub fn is_quantised(&self) -> bool {
        self.names().any(|name| names::role(name) == Role::Quantised(QuantPart::Codes))
    }

    /// Is the linear quantised whose weight is called `weight` where it is not?
    pub fn has_codes(&self, weight: &str) -> bool {
        self.contains(&names::part(weight, QuantPart::Codes))
    }

    /// An error unless tensor `name`, or what stands for it where it is quantised, is there.
    pub fn check_present(&self, name: &str) -> Result<()> {
        if !self.has_codes(name) {
            return self.shape(name).map(|_| ());
        }
        for part in [QuantPart::Zeros, QuantPart::Scales] {
            self.place(&names::part(name, part))?;
        }
        Ok(())
    }

    /// The linear `weight`, a matrix `[outputs, inputs]`, cut to `slice` (whose columns must be whole
    /// groups). Its bias goes with it if it is one that only quantisation gives, is not zero and is
    /// asked for. `in_place`: codes and scales are not copied, and may be in pieces.
    pub fn quantised(
        &self,
        weight: &str,
        (outputs, inputs): (usize, usize),
        format: &QuantConfig,
        slice: &Slice,
        (with_bias, in_place): (bool, bool),
    ) -> Result<QuantTensor> {
        check_slice(slice, outputs, inputs)?;
        let linear = Linear { checkpoint: self, weight, outputs, inputs, format, slice, in_place };
        let codes = linear.codes()?;
        let groups = linear.groups()?;
        let rows = linear.group_rows(&groups)?;
        let mut tensor = QuantTensor::new(format.bits, codes, linear.scales(rows.clone())?, groups);
        if let Some(zeros) = linear.zeros(rows)? {
            tensor = tensor.with_zeros(zeros);
        }
        match linear.bias()?.filter(|_| with_bias) {
            Some(bias) => Ok(tensor.with_bias(bias)),
            None => Ok(tensor),
        }
    }

    /// Bytes of the parts of linear `weight` that are looked at and not kept as they are: zero points,
    /// groups, a bias that only quantisation gives.
    pub fn looked_at_bytes(&self, weight: &str) -> u64 {
        let parts = [QuantPart::Zeros, QuantPart::Groups].map(|part| names::part(weight, part));
        let names = parts.into_iter().chain(names::extra_bias(weight));
        names.filter_map(|name| self.places.get(&name)).map(|place| place.range.len() as u64).sum()
    }

    /// Every part belongs to a linear that has codes and no plain weight beside them.
    pub(super) fn check_parts(&self) -> Result<()> {
        for (name, place) in &self.places {
            let Role::Quantised(part) = names::role(name) else { continue };
            let path = &self.files[place.file].path;
            let weight = names::weight_of(name, part);
            if !self.has_codes(&weight) {
                // A bias alone is not quantisation's: those are in no unquantised Qwen-1 model.
                let is_alone = !self.contains(&names::part(&weight, QuantPart::Scales));
                if part == QuantPart::Bias && is_alone {
                    return Err(unknown_name(path, name));
                }
                return self.place(&names::part(&weight, QuantPart::Codes)).map(|_| ());
            }
            if part == QuantPart::Codes && self.contains(&weight) {
                let reason = format!("`{weight}` is there, too: which one counts?");
                return Err(fault(path, name, None, reason));
            }
        }
        Ok(())
    }
}

/// One linear, on its way to one rank.
struct Linear<'a> {
    checkpoint: &'a Checkpoint,
    weight: &'a str,
    outputs: usize,
    inputs: usize,
    format: &'a QuantConfig,
    slice: &'a Slice,
    in_place: bool,
}

impl Linear<'_> {
    /// Part `part`, which must have this shape (a vector has one extent).
    fn part(&self, part: QuantPart, shape: &[usize]) -> Result<Part<'_>> {
        let name = names::part(self.weight, part);
        let place = self.checkpoint.place(&name)?;
        if !place.shape.iter().copied().eq(shape.iter().map(|extent| *extent as u64)) {
            return Err(self.checkpoint.misfit(&name, place, &format!("{shape:?}")));
        }
        Ok(Part { name, place, cols: shape.get(1).copied().unwrap_or(1) })
    }

    fn num_groups(&self) -> usize {
        self.format.num_groups(self.inputs)
    }

    /// Rows `rows` of `part` and its columns `col_ranges`, in elements of `size` bytes.
    fn cut(
        &self,
        part: &Part<'_>,
        size: usize,
        rows: Range<usize>,
        col_ranges: &[Range<usize>],
    ) -> Result<Span> {
        let span = self.checkpoint.cut(part.place, (part.cols, size), rows, col_ranges);
        match span.is_cut() && !self.in_place {
            true => {
                let bytes = files::join(&span)?;
                let range = 0..bytes.len();
                Ok(Span::new(Arc::new(bytes), range))
            }
            false => Ok(span),
        }
    }

    /// All `rows` rows of a part of words, in place.
    fn whole(&self, part: &Part<'_>, rows: usize) -> HostWords {
        let (owner, bytes) = self.checkpoint.bytes(part.place);
        HostWords::new(rows, part.cols, owner.clone(), bytes)
    }

    /// The same, read.
    fn loaded(&self, part: &Part<'_>, rows: usize) -> Result<HostWords> {
        let words = self.whole(part, rows);
        Ok(HostWords::from_vec(rows, part.cols, files::load(words.span())?))
    }

    fn codes(&self) -> Result<HostWords> {
        let per_word = self.format.bits.codes_per_word();
        for (extent, what) in [(self.inputs, "inputs"), (self.outputs, "outputs")] {
            if !extent.is_multiple_of(per_word) {
                let reason = format!("{extent} {what} are not whole words of {per_word} codes");
                let name = names::part(self.weight, QuantPart::Codes);
                let place = self.checkpoint.place(&name)?;
                return Err(self.fault(place, &name, None, reason));
            }
        }
        let part = self.part(QuantPart::Codes, &[self.inputs / per_word, self.outputs])?;
        let Range { start, end } = self.slice.cols;
        if !start.is_multiple_of(per_word) || !end.is_multiple_of(per_word) {
            return Err(self.cut_inside(per_word));
        }
        let rows = start / per_word..end / per_word;
        let cut = self.cut(&part, WORD_BYTES, rows.clone(), &self.slice.row_ranges)?;
        Ok(HostWords::of_span(rows.len(), self.slice.num_rows(), cut))
    }

    /// The group of each input of the slice: in order if `g_idx` says so, or is not there.
    fn groups(&self) -> Result<Groups> {
        let size = self.format.group_inputs(self.inputs);
        let name = names::part(self.weight, QuantPart::Groups);
        if !self.format.desc_act && !self.checkpoint.contains(&name) {
            return Ok(Groups::Runs(size));
        }
        let part = self.part(QuantPart::Groups, &[self.inputs])?;
        let words = self.loaded(&part, self.inputs)?;
        if let Some((k, group)) =
            words.iter().enumerate().find(|(_, group)| *group as usize >= self.num_groups())
        {
            let groups = self.num_groups();
            let reason = format!("input {k} is in group {}, of {groups}", group as i32);
            return Err(self.fault(part.place, &part.name, Some(k * WORD_BYTES), reason));
        }
        if words.iter().enumerate().all(|(k, group)| group as usize == k / size) {
            return Ok(Groups::Runs(size));
        }
        let cols = self.slice.cols.clone();
        Ok(Groups::Listed(words.iter().skip(cols.start).take(cols.len()).collect()))
    }

    /// Groups whose scales and zeros the slice needs.
    fn group_rows(&self, groups: &Groups) -> Result<Range<usize>> {
        let Groups::Runs(size) = *groups else { return Ok(0..self.num_groups()) };
        let Range { start, end } = self.slice.cols;
        let is_end = end == self.inputs || end.is_multiple_of(size);
        if self.format.group_size.is_some() && !(start.is_multiple_of(size) && is_end) {
            return Err(self.cut_inside(size));
        }
        Ok(start / size..end.div_ceil(size))
    }

    fn scales(&self, rows: Range<usize>) -> Result<HostTensor> {
        let part = self.part(QuantPart::Scales, &[self.num_groups(), self.outputs])?;
        let cut = self.cut(&part, SCALE_BYTES, rows.clone(), &self.slice.row_ranges)?;
        Ok(HostTensor::of_span(Dtype::F16, rows.len(), self.slice.num_rows(), cut))
    }

    /// Zero points of groups `rows`; none if all of the linear's are the middle.
    fn zeros(&self, rows: Range<usize>) -> Result<Option<HostTensor>> {
        let bits = self.format.bits;
        let (per_word, offset) = (bits.codes_per_word(), self.format.zero_offset);
        let words = self.outputs / per_word;
        let part = self.part(QuantPart::Zeros, &[self.num_groups(), words])?;
        let stored = self.loaded(&part, self.num_groups())?;
        let zero = |word: u32, index: usize| bits.code(word, index) + offset;
        // A word of middles is one byte four times.
        let middle = (0..8 / bits.count()).fold(0, |byte, index| {
            byte | ((bits.middle() - offset) as u8) << (index * bits.count())
        });
        if is_all(stored.bytes(), middle) {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(rows.len() * self.slice.num_rows() * SCALE_BYTES);
        for group in rows.clone() {
            for n in self.slice.row_ranges.iter().cloned().flatten() {
                let value = zero(stored.get(group, n / per_word), n % per_word);
                bytes.extend(half::f16::from_f32(value as f32).to_le_bytes());
            }
        }
        Ok(Some(HostTensor::from_vec(Dtype::F16, rows.len(), self.slice.num_rows(), bytes)))
    }

    /// The slice's part of a bias that only quantisation gives; none if all of it is zero.
    fn bias(&self) -> Result<Option<HostTensor>> {
        let name = names::extra_bias(self.weight);
        let Some(name) = name.filter(|name| self.checkpoint.contains(name)) else {
            return Ok(None);
        };
        let slice = Slice { row_ranges: self.slice.row_ranges.clone(), cols: 0..1 };
        let bias = self.checkpoint.small_tensor(&name, self.outputs, 1, &slice)?;
        Ok(bias.to_f32().iter().any(|x| *x != 0.0).then_some(bias))
    }

    /// The error at byte `within` of the tensor at `place`.
    fn fault(&self, place: &Place, name: &str, within: Option<usize>, reason: String) -> Error {
        let shard = &self.checkpoint.files[place.file];
        let offset = within.map(|within| (shard.data_offset + place.range.start + within) as u64);
        fault(&shard.path, name, offset, reason)
    }

    /// The plan of ranks does not cut so: `shard::check_world` comes first.
    fn cut_inside(&self, unit: usize) -> Error {
        let reason = format!(
            "{:?} of {} inputs are not whole units of {unit}",
            self.slice.cols, self.inputs
        );
        Error::Argument { argument: "slice", reason }
    }
}

/// Is every one of `bytes` this one? Whole pieces at a time, which the compiler turns into wide
/// comparisons: these are some hundred megabytes of a large model.
fn is_all(bytes: &[u8], byte: u8) -> bool {
    let differs = |piece: &[u8]| piece.iter().fold(0, |found, other| found | (other ^ byte)) != 0;
    !bytes.chunks(4096).any(differs)
}
