//! CUDA graphs: the work of one step, recorded once and launched again with one call.
//!
//! A recorded step reads its inputs (tokens, positions, page tables, lengths) from fixed device
//! memory, so the same graph serves every step of its number of rows, whatever the contexts.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::Cuda;
use super::driver::{Context, Stream, check};
use super::faults::{self, INSTANTIATE, RECORD, REPLAY};
use crate::batch::Batch;
use crate::error::Result;

/// Work that can be launched again and again.
pub(super) struct Graph {
    context: Arc<Context>,
    handle: sys::CUgraphExec,
}

// SAFETY: a handle that any thread may use, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// From here on, work queued on `stream` is recorded instead of run.
    pub(super) fn begin(stream: &Stream) -> Result<()> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begin = || {
            // SAFETY: the stream is alive and not being recorded.
            unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) }
        };
        check(faults::attempt(RECORD, begin), RECORD)
    }

    /// Is the work queued on `stream` being recorded?
    pub(super) fn is_recording(stream: &Stream) -> Result<bool> {
        let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream is alive; writes one number. Allowed while recording.
        let result = unsafe { sys::cuStreamIsCapturing(stream.raw(), &mut status) };
        check(result, "ask for a recording")?;
        Ok(status != sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// What was recorded since `begin`, uploaded to the device.
    pub(super) fn end(stream: &Stream) -> Result<Graph> {
        let mut graph = null_mut();
        // SAFETY: ends the recording begun on this stream; writes one handle.
        check(unsafe { sys::cuStreamEndCapture(stream.raw(), &mut graph) }, RECORD)?;
        let mut handle = null_mut();
        let result = faults::attempt(INSTANTIATE, || {
            // SAFETY: writes one handle made from a sound graph.
            unsafe { sys::cuGraphInstantiateWithFlags(&mut handle, graph, 0) }
        });
        // SAFETY: made above, destroyed once; the instance does not need it.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        check(result, INSTANTIATE)?;
        let graph = Graph { context: Arc::clone(stream.context()), handle };
        // SAFETY: both handles are alive.
        check(unsafe { sys::cuGraphUpload(handle, stream.raw()) }, "upload a step's graph")?;
        Ok(graph)
    }

    /// Queues the recorded work.
    pub(super) fn launch(&self, stream: &Stream) -> Result<()> {
        let launch = || {
            // SAFETY: both handles are alive.
            unsafe { sys::cuGraphLaunch(self.handle, stream.raw()) }
        };
        check(faults::attempt(REPLAY, launch), REPLAY)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: made here, destroyed once; the stream is waited for before graphs are dropped.
        let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
    }
}

impl Cuda {
    /// The rows of the graph that a decode step of `batch` runs in; none for other steps.
    pub(super) fn graph_rows(&self, batch: &Batch) -> Option<usize> {
        let rows = batch.num_tokens();
        // Recorded steps leave no hidden states.
        let is_decode = rows == batch.num_sequences()
            && rows == batch.logits_rows.len()
            && batch.hidden_rows.is_empty();
        let most = self.settings.limits.max_sequences;
        (is_decode && rows > 0 && rows <= most).then(|| bucket(rows).min(most))
    }
}

/// The size of graph that serves a step of `rows`: a few sizes, so that few are recorded.
pub(super) fn bucket(rows: usize) -> usize {
    match rows {
        0..=4 => rows.next_power_of_two(),
        5..=32 => rows.next_multiple_of(8),
        33..=64 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    }
}
