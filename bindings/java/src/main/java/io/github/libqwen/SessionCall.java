// A call that makes a reply of a session, on a thread of its own.

package io.github.libqwen;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/** It can be cancelled at any time, also before C has begun it. */
final class SessionCall implements TokenStream.Source {
    /** How often a cancel is repeated: one that comes before the call has begun finds nothing to cancel. */
    private static final long REPEAT_MS = 2;

    private final Mailbox mailbox;
    private final CountDownLatch done = new CountDownLatch(1);
    private final ReentrantLock lock = new ReentrantLock();
    // All below: under the lock.
    /** The session while C is in the call, 0 before and after. */
    private long session;
    private boolean ended;
    /** How it is to end: 0, STOP or CANCEL. */
    private int how;

    SessionCall(Mailbox mailbox) {
        this.mailbox = mailbox;
    }

    /** Makes the reply; afterwards runs what frees the session for another. */
    void run(Handle handle, byte[] text, boolean isResult, byte[] options, Runnable free) {
        QwenException error = EventSink.LOST;
        try {
            error = failureOf(handle, text, isResult, options);
        } finally {
            // Whatever else fails: the session must be free again, and nobody may wait for ever.
            try {
                leave();
            } finally {
                try {
                    free.run();
                } finally {
                    done.countDown();
                    mailbox.end(error);
                }
            }
        }
    }

    /** Makes the reply; null if that went well. */
    private QwenException failureOf(Handle handle, byte[] text, boolean isResult, byte[] options) {
        try {
            handle.run(object -> inside(object, text, isResult, options));
            return null;
        } catch (QwenException e) {
            return e;
        } catch (Throwable e) {
            QwenException error = QwenException.make(ErrorCode.PANIC, "the reply's events could not be read: " + e, "{}");
            error.initCause(e);
            return error;
        }
    }

    private void inside(long object, byte[] text, boolean isResult, byte[] options) {
        lock.lock();
        session = object;
        lock.unlock();
        try {
            Native.sessionReplyTo(object, text, isResult, options, mailbox);
        } finally {
            leave();
        }
    }

    private void leave() {
        lock.lock();
        session = 0;
        ended = true;
        lock.unlock();
    }

    @Override
    public void cancel(int wanted) {
        lock.lock();
        try {
            boolean first = how == 0;
            how = Math.max(how, wanted);
            if (!cancelOnce() && first) {
                Workers.POOL.execute(this::cancelUntilDone);
            }
        } finally {
            lock.unlock();
        }
    }

    /** Whether the call has ended. Held by the lock, it cannot be another call that is cancelled. */
    private boolean cancelOnce() {
        if (session != 0) {
            Native.sessionCancel(session, how);
        }
        return ended;
    }

    private void cancelUntilDone() {
        try {
            boolean over = false;
            while (!over && !done.await(REPEAT_MS, TimeUnit.MILLISECONDS)) {
                lock.lock();
                try {
                    over = cancelOnce();
                } finally {
                    lock.unlock();
                }
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    /** Cancels and waits until the call has returned, within a step, so that the session is free again. */
    @Override
    public void close() {
        cancel(Constants.CANCEL);
        boolean interrupted = false;
        while (done.getCount() > 0) {
            try {
                done.await();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    @Override
    public void forget() {
        cancel(Constants.CANCEL);
    }
}
