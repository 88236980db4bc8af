//! The end of a step: its draws, its launch if it was recorded, and its results on the host.

use super::Cuda;
use super::buffer::DeviceBuffer;
use super::graph::Graph;
use super::memory::{DeviceMemory, PinnedMemory};
use crate::backend::StepOutputs;
use crate::batch::Output;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, decode_f32};

/// A step on its way.
pub(super) struct Pending {
    turn: usize,
    tokens: usize,
    /// Where no tokens are drawn: the logits on the host, and how many.
    logits: Option<(PinnedMemory, usize)>,
    hidden: Option<Hidden>,
}

/// Hidden states on the host.
struct Hidden {
    /// Rows from the first wanted one on.
    memory: PinnedMemory,
    /// Which of them are wanted.
    rows: Vec<u32>,
    cols: usize,
    dtype: Dtype,
}

impl Hidden {
    /// Appends the rows wanted to `out`.
    fn append_to(&mut self, out: &mut Vec<f32>) {
        let row_bytes = self.cols * self.dtype.size_bytes();
        for row in &self.rows {
            let bytes = &self.memory.bytes_mut()[*row as usize * row_bytes..][..row_bytes];
            out.extend(decode_f32(self.dtype, bytes));
        }
    }
}

impl Cuda {
    /// See `Backend::finish_step`.
    pub(super) fn finish(&mut self, outputs: StepOutputs<'_, DeviceBuffer>) -> Result<()> {
        let logits = outputs.logits;
        let result = self.launcher.flush();
        self.note(result);
        if let Some(logits) = logits.filter(|_| !self.replayed) {
            let result = self.draw(logits);
            self.note(result);
        }
        let recorded = self.recording.take().map(|rows| (rows, Graph::end(&self.launcher.stream)));
        // An op that failed also spoils its recording: it is the cause to tell.
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let Some((rows, graph)) = recorded {
            let graph = graph?;
            // Making it takes memory, for which CUDA may wait for devices: none of them may wait for
            // this one meanwhile.
            self.comm.as_ref().map_or(Ok(()), |comm| comm.group.meet())?;
            graph.launch(&self.launcher.stream)?;
            self.graphs.insert(rows, graph);
        }
        let (turn, tokens) = (self.step.turn, self.step.extents.draws);
        let mut pending = Pending { turn, tokens, logits: None, hidden: None };
        if let Some((states, rows)) = outputs.hidden {
            pending.hidden = self.fetch_hidden(states, rows)?;
        }
        // Either the tokens or the logits leave the device.
        match logits {
            Some(logits) if tokens == 0 => pending.logits = self.fetch_logits(logits)?,
            Some(_) => self.sampler.fetch(&self.launcher.stream, turn, tokens)?,
            None => {}
        }
        self.marks[turn].1.set(&self.launcher.stream)?;
        self.pending.push_back(pending);
        Ok(())
    }

    /// Queues the draws of the step. Where there are several ranks, each draws the same from the logits
    /// of all.
    fn draw(&mut self, logits: &DeviceBuffer) -> Result<()> {
        let Cuda { comm, launcher, sampler, step, .. } = self;
        let Some(comm) = comm else { return sampler.draw(launcher, step, logits) };
        comm.gather(launcher, logits, step.extents.logits_rows)?;
        sampler.draw(launcher, step, &comm.logits)
    }

    /// Queues the copy of the step's logits to the host, which the first rank gives out: for tests and
    /// callers who draw.
    fn fetch_logits(&mut self, logits: &DeviceBuffer) -> Result<Option<(PinnedMemory, usize)>> {
        let logits = match &self.comm {
            Some(comm) if comm.rank != 0 => return Ok(None),
            Some(comm) => &comm.logits,
            None => logits,
        };
        let count = self.step.extents.wanted_rows * logits.cols();
        let spare = self.step.spare_logits.take();
        Ok(Some((self.fetch(&logits.memory, count * 4, (spare, "logits"))?, count)))
    }

    /// Queues the copy of hidden states to the host: from the first of `rows`, which ascend, to the last.
    fn fetch_hidden(&mut self, states: &DeviceBuffer, rows: &[u32]) -> Result<Option<Hidden>> {
        let (Some(&first), Some(&last)) = (rows.first(), rows.last()) else { return Ok(None) };
        let (cols, dtype) = (states.cols(), states.element(self.settings.dtype));
        let row_bytes = cols * dtype.size_bytes();
        let range = first as usize * row_bytes..(last as usize + 1) * row_bytes;
        let (part, len_bytes) = (states.memory.part(range.clone()), range.len());
        let spare = self.step.spare_hidden.take();
        let memory = self.fetch(&part, len_bytes, (spare, "hidden states"))?;
        let rows = rows.iter().map(|row| row - first).collect();
        Ok(Some(Hidden { memory, rows, cols, dtype }))
    }

    /// Queues the copy of the first `len_bytes` of `from` to the host, to `spare` if that is enough.
    fn fetch(
        &self,
        from: &DeviceMemory,
        len_bytes: usize,
        (spare, purpose): (Option<PinnedMemory>, &'static str),
    ) -> Result<PinnedMemory> {
        let mut host = match spare.filter(|spare| spare.len_bytes() >= len_bytes) {
            Some(spare) => spare,
            None => PinnedMemory::new(self.context(), len_bytes, purpose)?,
        };
        from.download(&self.launcher.stream, &mut host, len_bytes)?;
        Ok(host)
    }

    /// See `Backend::collect_step`.
    pub(super) fn collect(&mut self, output: &mut Output) -> Result<()> {
        let step = self.pending.pop_front().ok_or_else(|| Error::EngineFailed {
            reason: "a bug in the library: no step to collect".to_string(),
        })?;
        self.context().enter()?;
        let (begun, done) = &self.marks[step.turn];
        done.wait()?;
        output.device_us = done.us_since(begun)?;
        if let Some(comm) = &self.comm {
            comm.group.check()?;
        }
        if let Some(mut hidden) = step.hidden {
            hidden.append_to(&mut output.hidden);
            self.step.spare_hidden = Some(hidden.memory);
        }
        if self.comm.as_ref().is_some_and(|comm| comm.rank != 0) {
            return Ok(());
        }
        output.tokens.extend_from_slice(self.sampler.fetched(step.turn, step.tokens));
        if let Some((logits, count)) = step.logits {
            let words = logits.words(count).iter();
            output.logits.extend(words.map(|word| f32::from_bits(*word)));
            self.step.spare_logits = Some(logits);
        }
        Ok(())
    }
}
