//! Collectives between the ranks of one process: all-reduce and gather with a fixed order of
//! summation, so that every rank holds the same bits whatever the threads' timing; and handing over.
//!
//! Host memory only; a device backend has its own, and uses this to meet on the host.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// The reason of a rank that ends because another one has: the other's error says more.
pub const STOPPED: &str = "another rank stopped";

/// What ranks do together. Calls block until all ranks have made the same call.
pub trait Comm: Send + Sync {
    /// Number of ranks.
    fn world(&self) -> usize;
    /// `data = sum over ranks of data`, summed in rank order.
    fn all_reduce(&self, rank: usize, data: &mut [f32]) -> Result<()>;
    /// Rank 0 gets every rank's `data`, in rank order; the others get nothing.
    fn gather(&self, rank: usize, data: &[f32]) -> Result<Vec<Vec<f32>>>;
    /// `data` of rank `from` becomes that of rank `to`.
    fn hand_over(&self, rank: usize, from_to: (usize, usize), data: &mut [f32]) -> Result<()>;
    /// Releases every waiting rank with an error, now and for ever.
    fn abandon(&self);
}

/// A world of one.
pub struct Solo;

impl Comm for Solo {
    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, _rank: usize, _data: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn gather(&self, _rank: usize, data: &[f32]) -> Result<Vec<Vec<f32>>> {
        Ok(vec![data.to_vec()])
    }

    fn hand_over(&self, _: usize, _: (usize, usize), _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn abandon(&self) {}
}

/// Ranks that are threads of this process.
pub struct Threads {
    slots: Vec<Mutex<Vec<f32>>>,
    barrier: Mutex<BarrierState>,
    released: Condvar,
}

#[derive(Default)]
struct BarrierState {
    arrived: usize,
    generation: u64,
    abandoned: bool,
}

impl Threads {
    /// A world of `world` ranks.
    pub fn new(world: usize) -> Arc<Threads> {
        Arc::new(Threads {
            slots: (0..world).map(|_| Mutex::new(Vec::new())).collect(),
            barrier: Mutex::new(BarrierState::default()),
            released: Condvar::new(),
        })
    }

    /// Waits until all ranks are here.
    pub fn meet(&self) -> Result<()> {
        let mut state = self.barrier.lock();
        let generation = state.generation;
        state.arrived += 1;
        if state.arrived == self.slots.len() {
            state.arrived = 0;
            state.generation += 1;
            self.released.notify_all();
        }
        while state.generation == generation && !state.abandoned {
            self.released.wait(&mut state);
        }
        if state.abandoned {
            return Err(Error::EngineFailed { reason: STOPPED.to_string() });
        }
        Ok(())
    }

    fn publish(&self, rank: usize, data: &[f32]) -> Result<()> {
        let mut slot = self.slots[rank].lock();
        slot.clear();
        slot.extend_from_slice(data);
        drop(slot);
        self.meet()
    }
}

impl Comm for Threads {
    fn world(&self) -> usize {
        self.slots.len()
    }

    fn all_reduce(&self, rank: usize, data: &mut [f32]) -> Result<()> {
        self.publish(rank, data)?;
        data.copy_from_slice(&self.slots[0].lock());
        for slot in &self.slots[1..] {
            for (sum, term) in data.iter_mut().zip(slot.lock().iter()) {
                *sum += term;
            }
        }
        // Nobody may overwrite a slot before everybody has read it.
        self.meet()
    }

    fn gather(&self, rank: usize, data: &[f32]) -> Result<Vec<Vec<f32>>> {
        self.publish(rank, data)?;
        let parts = match rank {
            0 => self.slots.iter().map(|slot| slot.lock().clone()).collect(),
            _ => Vec::new(),
        };
        self.meet()?;
        Ok(parts)
    }

    fn hand_over(&self, rank: usize, (from, to): (usize, usize), data: &mut [f32]) -> Result<()> {
        self.publish(rank, if rank == from { data } else { &[] })?;
        if rank == to {
            data.copy_from_slice(&self.slots[from].lock());
        }
        self.meet()
    }

    fn abandon(&self) {
        self.barrier.lock().abandoned = true;
        self.released.notify_all();
    }
}
