//! The end of a step: its draws, its launch if it was recorded, and its results on the host.

use super::Cuda;
use super::buffer::DeviceBuffer;
use super::graph::Graph;
use super::memory::PinnedMemory;
use crate::batch::Output;
use crate::error::{Error, Result};

/// A step on its way.
pub(super) struct Pending {
    turn: usize,
    tokens: usize,
    /// Where no tokens are drawn: the logits on the host, and how many.
    logits: Option<(PinnedMemory, usize)>,
}

impl Cuda {
    /// See `Backend::finish_step`.
    pub(super) fn finish(&mut self, logits: Option<&DeviceBuffer>) -> Result<()> {
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
        let mut pending = Pending { turn, tokens, logits: None };
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
        let mut host = match spare.filter(|spare| spare.len_bytes() >= count * 4) {
            Some(spare) => spare,
            None => PinnedMemory::new(self.context(), count * 4, "logits")?,
        };
        logits.memory.download(&self.launcher.stream, &mut host, count * 4)?;
        Ok(Some((host, count)))
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
            if comm.rank != 0 {
                return Ok(());
            }
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
