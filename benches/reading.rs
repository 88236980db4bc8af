//! How fast the bytes of a checkpoint can be read on this machine, by the threads and blocks that a load
//! to a GPU uses, with no GPU: `cargo bench --bench reading -- FOLDER [THREADS]`. What the page cache
//! holds is read from there, the rest from the disk: run it twice, or drop the cache before.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use qwen::checkpoint::Checkpoint;
use qwen::reader::{HeapBlock, PIECE_BYTES, Readers, default_threads};

/// As many as the CUDA backend has.
const NUM_BLOCKS: usize = 32;

fn main() {
    // Cargo adds a flag of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(folder) = arguments.next() else {
        return println!("SKIPPED: say which checkpoint: reading FOLDER [THREADS]");
    };
    let threads = arguments.next().map(|text| text.parse().expect("a number of threads"));
    let threads = threads.unwrap_or_else(default_threads);
    let checkpoint = Checkpoint::open(Path::new(&folder)).expect("a checkpoint");
    let blocks = (0..NUM_BLOCKS.max(2 * threads)).map(|_| HeapBlock::default()).collect();
    let start = Instant::now();
    let readers = Readers::start(blocks, threads).expect("threads");
    let mut num_pieces = 0;
    for span in checkpoint.spans() {
        for from in (0..span.num_bytes()).step_by(PIECE_BYTES) {
            readers.ask(span.part(from..span.num_bytes().min(from + PIECE_BYTES)));
            num_pieces += 1;
        }
    }
    for _ in 0..num_pieces {
        readers.give_back(readers.take().expect("it reads").block);
    }
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), checkpoint.total_bytes());
    let rate = bytes as f64 / 1e9 / seconds;
    println!("{bytes} bytes in {seconds:.3} s: {rate:.2} GB/s, {threads} threads");
}
