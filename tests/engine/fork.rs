//! After a fork, the child's calls say so, and nothing hangs.

use std::sync::Arc;

use qwen::engine::session::{Flow, Session};
use qwen::engine::{CompletionQueue, Shutdown};
use qwen::error::{Error, Result};

use crate::fake::*;

/// Runs `child` in a forked process; its exit code. The child gets a minute.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only runs `child` and leaves by `_exit`, so it never returns into the test
    // harness, whose other threads do not exist there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        // SAFETY: both calls take plain numbers. The alarm ends a child that hangs.
        unsafe { libc::alarm(60) };
        let code = child();
        // SAFETY: as above.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result, `pid` is our child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child was killed: status {status}");
    libc::WEXITSTATUS(status)
}

fn forked<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Forked))
}

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    let (engine, control) = lab().start();
    control.hold();
    let queue = CompletionQueue::new();
    let place = Some((Arc::clone(&queue), 1));
    let session = Session::new(&engine, None);
    let (prompt, params) = (prompt(1, 10), greedy(20));
    let request = engine.submit_tokens(prompt.clone(), &params, place).expect("accepted");
    control.wait_for_step(1);
    let (child_engine, child_request) = (engine.clone(), request.clone());
    let code = fork(|| {
        let tokens = engine.submit_tokens(vec![1], &greedy(1), None);
        let checks = [
            forked(tokens),
            forked(engine.health()),
            forked(engine.shutdown(Shutdown::Cancel, LONG)),
            forked(request.next(None)),
            forked(queue.next(1, None)),
            forked(session.chat("x", &greedy(1), &mut |_| Flow::Continue)),
            forked(session.messages()),
        ];
        drop((child_request, request.clone(), child_engine));
        checks.iter().position(|ok| !ok).map_or(0, |index| index as i32 + 1)
    });
    assert_eq!(code, 0, "check number {code} failed");
    control.release();
    assert_expected(&read(&request), &prompt, &params);
}

#[test]
fn a_child_can_drop_the_last_handle() {
    let (engine, _) = lab().start();
    let mut engine = Some(engine);
    let code = fork(|| {
        drop(engine.take());
        0
    });
    assert_eq!(code, 0);
    assert_eq!(engine.expect("the parent's own").health(), Ok(()));
}
