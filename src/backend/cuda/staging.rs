//! Device memory that quantised matrices are packed from: two, which they use in turn, so that one is
//! filled while the other is packed from. Copies and packing run on streams of their own; what keeps them
//! apart are marks that the uploader has the streams wait for.
//!
//! Both lie in the matrix that products of many rows dequantise weights into, which is idle while weights
//! come: staging takes no memory of its own. Only a matrix that needs more than the model's shape says
//! gets other memory.

use std::sync::Arc;

use super::driver::{Context, Mark, Stream};
use super::memory::DeviceMemory;
use super::packed::STAGING_ALIGN_BYTES;
use crate::error::Result;

const PURPOSE: &str = "upload of weights";

/// One of the two.
struct Slot {
    memory: Option<Arc<DeviceMemory>>,
    /// Behind the packing that read it last.
    packed: Mark,
}

/// Both.
pub(super) struct Stagings {
    slots: [Slot; 2],
    next: usize,
}

impl Stagings {
    /// None has memory yet.
    pub(super) fn new(context: &Arc<Context>) -> Result<Stagings> {
        let slot = || Ok(Slot { memory: None, packed: Mark::new(context)? });
        Ok(Stagings { slots: [slot()?, slot()?], next: 0 })
    }

    /// Lets them use `memory`, which nothing else does until they are dropped or freed.
    pub(super) fn lend(&mut self, memory: &DeviceMemory) {
        let half = memory.len_bytes() / 2 / STAGING_ALIGN_BYTES * STAGING_ALIGN_BYTES;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.memory = Some(Arc::new(memory.part(index * half..(index + 1) * half)));
        }
    }

    /// The one whose turn it is, at least `len_bytes` long, and its number.
    pub(super) fn next(
        &mut self,
        context: &Arc<Context>,
        len_bytes: usize,
    ) -> Result<(usize, Arc<DeviceMemory>)> {
        let index = self.next;
        let slot = &mut self.slots[index];
        self.next = 1 - index;
        if let Some(memory) = slot.memory.as_ref().filter(|it| it.len_bytes() >= len_bytes) {
            return Ok((index, Arc::clone(memory)));
        }
        // Tasks that still need the one before have it.
        slot.memory = None;
        let memory = Arc::new(DeviceMemory::new(context, len_bytes, PURPOSE)?);
        slot.memory = Some(Arc::clone(&memory));
        Ok((index, memory))
    }

    /// Gives the memory back, so that there is never more than weights beside it.
    pub(super) fn free(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.memory = None);
    }

    /// What is queued on `copies` from now on may write staging memory `index`: it begins when that has
    /// been packed from.
    pub(super) fn enter(&self, index: usize, copies: &Stream) -> Result<()> {
        copies.after(&self.slots[index].packed)
    }

    /// All that reads staging memory `index` is queued on `stream`.
    pub(super) fn leave(&self, index: usize, stream: &Stream) -> Result<()> {
        self.slots[index].packed.set(stream)
    }
}
