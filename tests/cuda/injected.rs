//! Operations that CUDA refuses, injected one by one: the engine fails with a status that names the
//! operation; the process, other engines and new ones do not.
//!
//! What is armed strikes whoever comes first in the process, so each test runs in a child of its own.

use qwen::backend::cuda::faults::{
    ALLOCATE, INSTANTIATE, LAUNCH, MULTIPLY, RECORD, REPLAY, UPLOAD, arm, disarm,
};
use qwen::engine::Engine;
use qwen::error::Error;

use crate::device::gpu;
use crate::faults::{MARK, child};
use crate::opened::{Folder, SMALL, open, reply};

/// Bytes by which free memory may move on its own.
const QUIET_BYTES: u64 = 64 << 20;

/// An engine that no fault is meant for, and its reply: whatever happens, it must stay the same.
struct Bystander {
    folder: Folder,
    engine: Engine,
    want: String,
}

impl Bystander {
    fn new(name: &str) -> Bystander {
        let folder = Folder::new(name, &SMALL);
        let engine = open(&folder).expect("it opens");
        let want = reply(&engine).expect("a reply");
        assert!(!want.is_empty());
        Bystander { folder, engine, want }
    }

    fn goes_on(&self, after: &str) {
        assert_eq!(reply(&self.engine).as_ref(), Ok(&self.want), "another engine, after {after}");
    }

    fn new_engine_answers(&self, after: &str) {
        let engine = open(&self.folder).expect("a new engine opens");
        assert_eq!(reply(&engine).as_ref(), Ok(&self.want), "a new engine, after {after}");
    }
}

#[test]
#[ignore = "run in a child by the tests below"]
fn refuse_in_a_step() {
    let bystander = Bystander::new("step");
    let mut found = Vec::new();
    for (operation, nth) in [(LAUNCH, 1), (LAUNCH, 9), (MULTIPLY, 2), (REPLAY, 1), (REPLAY, 7)]
        .into_iter()
        .chain([(UPLOAD, 1), (UPLOAD, 3)])
    {
        let what = format!("{operation}, number {nth}");
        let engine = open(&bystander.folder).expect("it opens");
        assert_eq!(reply(&engine).as_ref(), Ok(&bystander.want), "before {what}");
        arm(operation, nth);
        let error = reply(&engine).expect_err(&what);
        assert!(disarm(), "{what} never came");
        let named = matches!(&error, Error::EngineFailed { reason } if reason.contains(operation));
        assert!(named, "{what}: {error:?}");
        assert!(matches!(reply(&engine), Err(Error::EngineFailed { .. })), "{what}: it goes on?");
        bystander.goes_on(&what);
        drop(engine);
        bystander.new_engine_answers(&what);
        found.push(error.to_string());
    }
    eprintln!("{MARK}{}", found.join("; "));
}

#[test]
#[ignore = "run in a child by the tests below"]
fn refuse_at_open() {
    let bystander = Bystander::new("open");
    let mut found = Vec::new();
    let cases = [(LAUNCH, 1), (LAUNCH, 30), (MULTIPLY, 1), (RECORD, 1), (RECORD, 5)];
    for (operation, nth) in cases.into_iter().chain([(INSTANTIATE, 1), (REPLAY, 3), (UPLOAD, 2)]) {
        let what = format!("{operation}, number {nth}");
        arm(operation, nth);
        let error = open(&bystander.folder).err();
        assert!(disarm(), "{what} never came");
        let error = error.unwrap_or_else(|| panic!("{what}: it opens"));
        let named = matches!(&error, Error::Device { operation: named, .. } if *named == operation);
        assert!(named, "{what}: {error:?}");
        bystander.goes_on(&what);
        found.push(error.to_string());
    }
    bystander.new_engine_answers("all of them");
    eprintln!("{MARK}{}", found.join("; "));
}

#[test]
#[ignore = "run in a child by the tests below"]
fn refuse_memory_at_open() {
    let device = gpu().expect("a GPU");
    let bystander = Bystander::new("memory");
    let before = device.free_bytes().expect("asked");
    let mut refused = 0;
    // Every other allocation; the last of them all is beyond what an open asks for.
    for nth in (1..).step_by(2) {
        arm(ALLOCATE, nth);
        let opened = open(&bystander.folder);
        let came = disarm();
        match opened {
            Ok(engine) => {
                assert!(!came, "allocation {nth} was refused, and it opens");
                assert_eq!(reply(&engine).as_ref(), Ok(&bystander.want));
                break;
            }
            Err(Error::OutOfDeviceMemory { purpose, needed_bytes, .. }) => {
                assert!(came && !purpose.is_empty() && needed_bytes > 0);
            }
            Err(error) => panic!("allocation {nth}: {error:?}"),
        }
        refused += 1;
    }
    let after = device.free_bytes().expect("asked");
    assert!(before.abs_diff(after) < QUIET_BYTES, "{before} bytes free before, {after} after");
    bystander.goes_on("every refusal");
    assert!(refused > 8, "an open takes more than {refused} allocations");
    eprintln!("{MARK}{refused} allocations refused");
}

#[test]
fn an_operation_refused_in_a_step_fails_its_engine_alone() {
    let Some(_) = gpu() else { return };
    eprintln!("{}", child("injected::refuse_in_a_step", None));
}

#[test]
fn an_operation_refused_at_open_is_its_error() {
    let Some(_) = gpu() else { return };
    eprintln!("{}", child("injected::refuse_at_open", None));
}

#[test]
fn an_allocation_refused_at_open_loses_nothing() {
    let Some(_) = gpu() else { return };
    eprintln!("{}", child("injected::refuse_memory_at_open", None));
}
