//! Bytes from libFuzzer for `entries::session`.
#![no_main]

#[path = "../entries/mod.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(
    // libFuzzer's own hook ends the process at a panic that the library catches.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |data: &[u8]| entries::session(data)
);
