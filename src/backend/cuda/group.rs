//! The devices of one engine: a context on each, the memory through which they reach each other, and
//! the word that one of them will not come any more.
//!
//! What is exchanged goes into memory of the receiver (`exchange.cuh`): on its device where the sender
//! has access to that, in pinned host memory where some pair of devices has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};
use parking_lot::Mutex;

use super::driver::{Context, Stream, check};
use super::memory::{DeviceMemory, PinnedMemory};
use super::owners::MOST_BLOCKS;
use crate::backend::comm::{Comm, STOPPED, Threads};
use crate::error::{Error, Result};

/// As `exchange.cuh` has them.
pub const MAX_WORLD: usize = 8;
const BUFFERS: usize = 3;
const EMPTY: u32 = 0x8000_0000;

/// Bytes of a slot, at least: a step's rows of decode, and pieces of a prompt's, each a launch.
const SLOT_BYTES: usize = 4 << 20;
/// No rank is so late unless it is lost: ranks begin steps together, and time products in the first.
const TIMEOUT_S: u64 = 30;

/// Sizes of what is exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupShape {
    /// Columns of the sums.
    pub hidden_size: usize,
    /// Columns of logits of each rank.
    pub logits_cols: Vec<usize>,
    /// Rows of the largest step that is summed; 0 where none is.
    pub max_tokens: usize,
}

impl GroupShape {
    /// Floats of a slot.
    pub(super) fn slot_floats(&self) -> usize {
        let row = self.logits_cols.iter().copied().max().unwrap_or(0).max(self.hidden_size);
        (SLOT_BYTES / 4).max(row).next_multiple_of(4)
    }

    /// Bytes of slots.
    fn slots_bytes(&self) -> usize {
        BUFFERS * self.logits_cols.len() * self.slot_floats() * 4
    }

    /// Bytes of flags of each rank's blocks.
    fn flags_bytes(&self) -> usize {
        self.logits_cols.len() * MOST_BLOCKS * 4
    }

    /// Bytes that a rank's exchange memory has: slots, flags, and staging for rows that are its own.
    pub(super) fn exchange_bytes(&self) -> usize {
        let world = self.logits_cols.len();
        let staging = world * self.max_tokens.div_ceil(world) * self.hidden_size * 4;
        self.slots_bytes() + self.flags_bytes() + staging
    }
}

/// What others write into.
enum Exchange {
    Device(DeviceMemory),
    /// Its address on every device.
    Host(u64, #[expect(dead_code, reason = "it owns what devices write to")] PinnedMemory),
}

/// Devices that run one model together, a rank each.
pub struct Group {
    shape: GroupShape,
    // Dropped in this order: contexts last.
    exchanges: Vec<Exchange>,
    /// `exchange::Shared`, and its address.
    shared: (PinnedMemory, u64),
    threads: Arc<Threads>,
    /// Each rank's activations: the others write there, and may do so as long as one of them runs.
    activations: Mutex<Vec<Vec<DeviceMemory>>>,
    contexts: Vec<Arc<Context>>,
}

// SAFETY: its memory is written by devices, and by the host through atomics only.
unsafe impl Sync for Group {}

impl Group {
    /// A group of at most `MAX_WORLD` devices, no two of them the same: rank r in the r-th context.
    pub fn new(contexts: Vec<Arc<Context>>, shape: GroupShape) -> Result<Arc<Group>> {
        let is_direct = connect(&contexts)?;
        Group::tied(contexts, shape, is_direct)
    }

    /// The same as if some devices did not reach each other's memory. For tests.
    #[doc(hidden)]
    pub fn through_host(contexts: Vec<Arc<Context>>, shape: GroupShape) -> Result<Arc<Group>> {
        Group::tied(contexts, shape, false)
    }

    fn tied(contexts: Vec<Arc<Context>>, shape: GroupShape, is_direct: bool) -> Result<Arc<Group>> {
        let world = contexts.len();
        assert!(world == shape.logits_cols.len() && (1..=MAX_WORLD).contains(&world));
        let exchange = |context: &Arc<Context>| Exchange::new(context, &shape, is_direct);
        let exchanges = contexts.iter().map(exchange).collect::<Result<Vec<_>>>()?;
        let words = PinnedMemory::new(&contexts[0], 4 * (1 + MAX_WORLD), "ranks")?;
        let address = words.device_address()?;
        let threads = Threads::new(world);
        let activations = Mutex::new((0..world).map(|_| Vec::new()).collect());
        Ok(Arc::new(Group {
            shape,
            exchanges,
            shared: (words, address),
            threads,
            activations,
            contexts,
        }))
    }

    pub(super) fn world(&self) -> usize {
        self.contexts.len()
    }

    pub(super) fn shape(&self) -> &GroupShape {
        &self.shape
    }

    pub(super) fn context(&self, rank: usize) -> &Arc<Context> {
        &self.contexts[rank]
    }

    /// Where ranks' exchange memory is, as every device of the group sees it.
    pub(super) fn addresses(&self) -> [u64; MAX_WORLD] {
        let mut addresses = [0; MAX_WORLD];
        for (to, exchange) in addresses.iter_mut().zip(&self.exchanges) {
            *to = match exchange {
                Exchange::Device(memory) => memory.address(),
                Exchange::Host(address, _) => *address,
            };
        }
        addresses
    }

    /// Where ranks' flags and staging are; none where they do not reach each other's memory.
    pub(super) fn flags_and_staging(&self) -> Option<[[u64; MAX_WORLD]; 2]> {
        let is_direct = self.exchanges.iter().all(|one| matches!(one, Exchange::Device(_)));
        let flags = self.shape.slots_bytes() as u64;
        let staging = flags + self.shape.flags_bytes() as u64;
        is_direct.then(|| [flags, staging].map(|offset| self.addresses().map(|at| at + offset)))
    }

    /// Multiprocessors of the device that has fewest.
    pub(super) fn fewest_sms(&self) -> usize {
        let sms = self.contexts.iter().map(|context| context.device.num_sms as usize);
        sms.min().unwrap_or(0)
    }

    /// The words that host and devices share.
    pub(super) fn shared_address(&self) -> u64 {
        self.shared.1
    }

    /// How long a device waits for another.
    pub(super) fn timeout_ns(&self) -> u64 {
        TIMEOUT_S * 1_000_000_000
    }

    /// Waits on the host until all ranks are here.
    pub(super) fn meet(&self) -> Result<()> {
        self.threads.meet()
    }

    /// Waits on the host until all ranks have told where their activations are: all of these, by rank. The
    /// group keeps them.
    pub(super) fn exchange_activations(
        &self,
        rank: usize,
        own: Vec<DeviceMemory>,
    ) -> Result<Vec<Vec<u64>>> {
        self.activations.lock()[rank] = own;
        self.meet()?;
        let addresses = |of: &Vec<DeviceMemory>| of.iter().map(DeviceMemory::address).collect();
        Ok(self.activations.lock().iter().map(addresses).collect())
    }

    /// Whoever waits for a rank, on a device or on the host, gives up.
    pub fn abandon(&self) {
        self.words()[0].store(1, Ordering::Release);
        self.threads.abandon();
    }

    /// The error of a rank that has given up, or must.
    pub(super) fn check(&self) -> Result<()> {
        let words = self.words();
        let late = words[1..].iter().position(|word| word.load(Ordering::Acquire) != 0);
        let reason = match late {
            Some(rank) => format!("rank {rank} has waited {TIMEOUT_S} s for the other devices"),
            None if words[0].load(Ordering::Acquire) != 0 => STOPPED.to_string(),
            None => return Ok(()),
        };
        Err(Error::EngineFailed { reason })
    }

    /// The first: abandoned; then one a rank: it has waited in vain.
    fn words(&self) -> &[AtomicU32] {
        self.shared.0.atomics(1 + MAX_WORLD)
    }
}

impl Exchange {
    /// Memory of the rank of `context`, empty.
    fn new(context: &Arc<Context>, shape: &GroupShape, is_direct: bool) -> Result<Exchange> {
        const PURPOSE: &str = "exchange between devices";
        let len = shape.exchange_bytes();
        if !is_direct {
            let len = shape.slots_bytes();
            let mut memory = PinnedMemory::new(context, len, PURPOSE)?;
            memory.words_mut(len / 4).fill(EMPTY);
            return Ok(Exchange::Host(memory.device_address()?, memory));
        }
        let memory = DeviceMemory::new(context, len, PURPOSE)?;
        let stream = Stream::new(context)?;
        memory.fill(&stream, EMPTY)?;
        stream.wait()?;
        Ok(Exchange::Device(memory))
    }
}

/// Gives every context access to the others' memory, unless some pair of devices has none.
fn connect(contexts: &[Arc<Context>]) -> Result<bool> {
    let pairs = || {
        let others = |a| contexts.iter().map(move |b| (a, b));
        contexts.iter().flat_map(others).filter(|(a, b)| !Arc::ptr_eq(a, b))
    };
    for (from, to) in pairs() {
        if !from.device.reaches(&to.device)? {
            return Ok(false);
        }
    }
    for (from, to) in pairs() {
        from.enter()?;
        // SAFETY: both contexts are alive, and on devices that reach each other.
        let result = unsafe { sys::cuCtxEnablePeerAccess(to.raw(), 0) };
        if result != CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            check(result, "reach another device's memory")?;
        }
    }
    Ok(true)
}
