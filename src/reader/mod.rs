//! Reads spans of tensor files into blocks of memory: several at a time, handed out in the order in
//! which they were asked for.
//!
//! Spans come from whoever loads weights, a few blocks ahead of their use; blocks are the caller's,
//! which gives them back when their bytes have gone on. How one span is read is in `piece`. Knows no
//! tensor, no device, and nothing of what the bytes mean.

mod piece;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::tensor::Span;
use piece::{ALIGN_BYTES, Opener};

/// Bytes of a span that goes into one block, at most.
pub const PIECE_BYTES: usize = 8 << 20;
/// Bytes that a block must have: a piece that is read directly begins and ends with a whole sector.
pub const BLOCK_BYTES: usize = PIECE_BYTES + 2 * ALIGN_BYTES;
/// One thread copies some 8 GB/s out of the page cache: more than these find no more bandwidth. Disks
/// want several requests at a time, however few the cores.
const FEWEST_THREADS: usize = 4;
const MOST_THREADS: usize = 8;

/// Threads that this machine's files are read by.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(FEWEST_THREADS, MOST_THREADS)
}

/// Threads that fill blocks.
pub struct Readers<B> {
    shared: Arc<Shared<B>>,
    threads: Vec<JoinHandle<()>>,
}

/// A block that has been filled.
pub struct Filled<B> {
    /// To be given back.
    pub block: B,
    /// The bytes of the span in it.
    pub range: Range<usize>,
}

struct Shared<B> {
    state: Mutex<State<B>>,
    /// There is something to read and a block for it, or it is over.
    work: Condvar,
    /// A span has been read.
    done: Condvar,
}

struct State<B> {
    free: Vec<B>,
    /// Not begun.
    waiting: VecDeque<Span>,
    /// Begun, in order; none while being read.
    begun: VecDeque<Option<Result<Filled<B>>>>,
    /// Spans taken: the number of the first that is begun.
    num_taken: u64,
    is_over: bool,
}

impl<B: AsMut<[u8]> + Send + 'static> Readers<B> {
    /// Starts `num_threads` that fill `blocks`, of `BLOCK_BYTES` each. Direct reads also want them
    /// aligned to a page; others are read into by way of the page cache.
    pub fn start(blocks: Vec<B>, num_threads: usize) -> Result<Readers<B>> {
        assert!(!blocks.is_empty() && num_threads > 0, "no blocks, or no threads");
        let state = State {
            free: blocks,
            waiting: VecDeque::new(),
            begun: VecDeque::new(),
            num_taken: 0,
            is_over: false,
        };
        let (work, done) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), work, done });
        let mut readers = Readers { shared, threads: Vec::new() };
        for index in 0..num_threads {
            let shared = Arc::clone(&readers.shared);
            let name = format!("qwen-read-{index}");
            match std::thread::Builder::new().name(name).spawn(move || serve(&shared)) {
                Ok(thread) => readers.threads.push(thread),
                // Fewer read as well.
                Err(_) if index > 0 => break,
                Err(e) => {
                    return Err(Error::EngineFailed { reason: format!("no reading thread: {e}") });
                }
            }
        }
        Ok(readers)
    }

    /// Asks for a span of at most `PIECE_BYTES`, after all before it.
    pub fn ask(&self, span: Span) {
        assert!(span.num_bytes() <= PIECE_BYTES, "a span longer than a block");
        self.shared.state.lock().waiting.push_back(span);
        self.shared.work.notify_one();
    }

    /// The next span, if it has been read.
    pub fn try_take(&self) -> Option<Result<Filled<B>>> {
        self.shared.state.lock().take()
    }

    /// The next span, which must have been asked for, when it has been read. There must be blocks
    /// that the caller does not hold.
    pub fn take(&self) -> Result<Filled<B>> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(filled) = state.take() {
                return filled;
            }
            let has_begun = !state.begun.is_empty();
            assert!(has_begun || !state.waiting.is_empty(), "nothing was asked for");
            assert!(has_begun || !state.free.is_empty(), "no block to read into");
            self.shared.done.wait(&mut state);
        }
    }

    /// A block for another span.
    pub fn give_back(&self, block: B) {
        self.shared.state.lock().free.push(block);
        self.shared.work.notify_one();
    }
}

impl<B> Drop for Readers<B> {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was caught inside.
            let _ = thread.join();
        }
    }
}

impl<B> State<B> {
    fn take(&mut self) -> Option<Result<Filled<B>>> {
        let filled = self.begun.front_mut()?.take()?;
        self.begun.pop_front();
        self.num_taken += 1;
        Some(filled)
    }

    /// The next span to be read, a block for it, and its number. Blocks go to spans in order, so that
    /// the one that is waited for always has one before those after it.
    fn begin(&mut self) -> Option<(Span, B, u64)> {
        if self.waiting.is_empty() {
            return None;
        }
        let block = self.free.pop()?;
        let span = self.waiting.pop_front()?;
        self.begun.push_back(None);
        Some((span, block, self.num_taken + self.begun.len() as u64 - 1))
    }
}

impl<B> Shared<B> {
    /// Sleeps until there is something to read; none when it is over.
    fn next(&self) -> Option<(Span, B, u64)> {
        let mut state = self.state.lock();
        while !state.is_over {
            if let Some(next) = state.begin() {
                return Some(next);
            }
            self.work.wait(&mut state);
        }
        None
    }

    fn finish(&self, number: u64, block: B, result: Result<Range<usize>>) {
        let mut state: MutexGuard<'_, State<B>> = self.state.lock();
        let filled = match result {
            Ok(range) => Ok(Filled { block, range }),
            Err(error) => {
                state.free.push(block);
                Err(error)
            }
        };
        let at = (number - state.num_taken) as usize;
        state.begun[at] = Some(filled);
        self.done.notify_all();
    }
}

/// A reading thread.
fn serve<B: AsMut<[u8]>>(shared: &Shared<B>) {
    let mut opener = Opener::default();
    while let Some((span, mut block, number)) = shared.next() {
        // Whoever waits for this span must hear of its end.
        let read = catch_unwind(AssertUnwindSafe(|| opener.read(&span, block.as_mut())));
        let result = read.unwrap_or_else(|_| {
            Err(Error::EngineFailed { reason: "a bug in the library: a reader panicked".into() })
        });
        shared.finish(number, block, result);
    }
}

/// A block for those who have no better one: heap memory, aligned for direct reads.
pub struct HeapBlock {
    bytes: Vec<u8>,
    start: usize,
}

impl Default for HeapBlock {
    fn default() -> HeapBlock {
        let bytes = vec![1; BLOCK_BYTES + ALIGN_BYTES];
        let start = bytes.as_ptr().align_offset(ALIGN_BYTES);
        HeapBlock { bytes, start }
    }
}

impl AsMut<[u8]> for HeapBlock {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::tensor::{Bytes, StoredFile};

    /// A folder of its own for a test.
    pub(super) struct Folder(pub(super) PathBuf);

    impl Folder {
        pub(super) fn new(name: &str) -> Folder {
            let path =
                std::env::temp_dir().join(format!("qwen-reader-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a folder");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Bytes, and the file that has them.
    pub(super) struct Stored {
        bytes: Vec<u8>,
        file: StoredFile,
    }

    impl Stored {
        pub(super) fn new(path: &Path, bytes: &[u8]) -> Stored {
            std::fs::write(path, bytes).expect("written");
            Stored::of(path, bytes)
        }

        /// Of a file that is there.
        pub(super) fn of(path: &Path, bytes: &[u8]) -> Stored {
            let file = std::fs::File::open(path).expect("it is there");
            let metadata = file.metadata().expect("it is there");
            let identity = (metadata.dev(), metadata.ino());
            let file = StoredFile { path: path.into(), file, identity };
            Stored { bytes: bytes.to_vec(), file }
        }
    }

    impl Bytes for Stored {
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }

        fn file(&self) -> Option<&StoredFile> {
            Some(&self.file)
        }
    }

    /// Bytes of which no two neighbours, nor any a sector apart, are alike.
    pub(super) fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
    }

    fn blocks(count: usize) -> Vec<HeapBlock> {
        (0..count).map(|_| HeapBlock::default()).collect()
    }

    #[test]
    fn spans_come_in_order_whatever_the_number_of_blocks_and_threads() {
        let folder = Folder::new("order");
        let stored = Arc::new(Stored::new(&folder.0.join("data"), &bytes(3_000_000)));
        let spans: Vec<Span> = (0..200_usize)
            .map(|i| {
                let start = i * i * 7919 % 2_900_000;
                let len = [0, 1, 4096, 99_991][i % 4];
                match i % 5 {
                    // Memory of no file.
                    0 => Span::new(Arc::new(bytes(len + i)), i..i + len),
                    _ => Span::new(stored.clone(), start..start + len),
                }
            })
            .collect();
        for (num_blocks, num_threads) in [(1, 1), (1, 4), (3, 2), (8, 8)] {
            let readers = Readers::start(blocks(num_blocks), num_threads).expect("threads");
            spans.iter().for_each(|span| readers.ask(span.clone()));
            let mut held = VecDeque::new();
            for (index, span) in spans.iter().enumerate() {
                while held.len() >= num_blocks {
                    readers.give_back(held.pop_front().expect("one"));
                }
                let Filled { mut block, range } = match readers.try_take() {
                    Some(filled) => filled.expect("it reads"),
                    None => {
                        held.drain(..).for_each(|block| readers.give_back(block));
                        readers.take().expect("it reads")
                    }
                };
                assert_eq!(&block.as_mut()[range], span.bytes(), "span {index}");
                held.push_back(block);
            }
            assert!(readers.try_take().is_none());
        }
    }

    #[test]
    fn an_error_comes_in_the_place_of_its_span_and_the_rest_goes_on() {
        let folder = Folder::new("error");
        let good = Arc::new(Stored::new(&folder.0.join("good"), &bytes(50_000)));
        let cut = Arc::new(Stored::new(&folder.0.join("cut"), &bytes(50_000)));
        std::fs::write(folder.0.join("cut"), [1]).expect("written");
        let readers = Readers::start(blocks(2), 2).expect("threads");
        for owner in [&good, &cut, &good, &cut, &good] {
            readers.ask(Span::new(owner.clone(), 1000..40_000));
        }
        for is_good in [true, false, true, false, true] {
            match readers.take() {
                Ok(filled) => {
                    assert!(is_good);
                    readers.give_back(filled.block);
                }
                Err(error) => {
                    assert!(!is_good && matches!(error, Error::Corrupt { .. }), "{error}")
                }
            }
        }
    }

    /// A block that a reader cannot take: whoever asks for its bytes panics, as often as it says.
    struct Trap {
        block: HeapBlock,
        panics: usize,
    }

    impl AsMut<[u8]> for Trap {
        fn as_mut(&mut self) -> &mut [u8] {
            if self.panics > 0 {
                self.panics -= 1;
                panic!("as the test wants it");
            }
            self.block.as_mut()
        }
    }

    #[test]
    fn a_reader_that_panics_is_an_error_of_its_span_and_reads_on() {
        let traps = |panics| Trap { block: HeapBlock::default(), panics };
        let readers = Readers::start(vec![traps(2)], 1).expect("threads");
        let owner = Arc::new(bytes(10_000));
        (0..4).for_each(|i| readers.ask(Span::new(owner.clone(), i..i + 5000)));
        for i in 0..4 {
            match readers.take() {
                Ok(Filled { mut block, range }) => {
                    assert!(i >= 2, "span {i} was read");
                    assert_eq!(&block.as_mut()[range], &owner[i..i + 5000]);
                    readers.give_back(block);
                }
                Err(Error::EngineFailed { reason }) => {
                    assert!(i < 2 && reason.contains("a reader panicked"), "span {i}: {reason}");
                }
                Err(error) => panic!("span {i}: {error}"),
            }
        }
    }

    #[test]
    fn a_load_that_is_given_up_ends_at_once() {
        let readers = Readers::start(blocks(2), 2).expect("threads");
        let owner = Arc::new(bytes(PIECE_BYTES));
        for _ in 0..1000 {
            readers.ask(Span::new(owner.clone(), 0..PIECE_BYTES));
        }
        let filled = readers.take().expect("it reads");
        // Two blocks are being filled at most; the other spans are dropped unread.
        drop(readers);
        drop(filled);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
