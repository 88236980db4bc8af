// Handles: a C object with the number of calls that are inside of it.

package io.github.libqwen;

import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/**
 * It is freed when it is closed and the last call has left, so close never pulls an object away from
 * under a call. Any thread; never waits.
 */
final class Handle {
    /** The C objects that are held, for the tests. */
    static final AtomicLong LIVE = new AtomicLong();

    private static final int CLOSED = 1 << 31;

    private final String what;
    private final long object;
    private final LongConsumer free;
    /** The number of calls inside, and CLOSED. */
    private final AtomicInteger state = new AtomicInteger();

    /** Free gets the object, and must not refer to whoever owns the handle. */
    Handle(String what, long object, LongConsumer free) {
        this.what = what;
        this.object = object;
        this.free = free;
        LIVE.incrementAndGet();
    }

    /** Runs a call with the object. */
    <T> T ask(LongFunction<T> call) {
        enter();
        try {
            return call.apply(object);
        } finally {
            leave();
        }
    }

    void run(LongConsumer call) {
        enter();
        try {
            call.accept(object);
        } finally {
            leave();
        }
    }

    private void enter() {
        int inside;
        do {
            inside = state.get();
            if (inside < 0) {
                throw QwenException.closed(what);
            }
        } while (!state.compareAndSet(inside, inside + 1));
    }

    private void leave() {
        if (state.decrementAndGet() == CLOSED) {
            release();
        }
    }

    boolean isClosed() {
        return state.get() < 0;
    }

    /** Lets nobody in any more. Again, it does nothing. */
    void close() {
        int inside;
        do {
            inside = state.get();
            if (inside < 0) {
                return;
            }
        } while (!state.compareAndSet(inside, inside | CLOSED));
        if (inside == 0) {
            release();
        }
    }

    private void release() {
        free.accept(object);
        LIVE.decrementAndGet();
    }
}
