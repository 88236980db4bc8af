// The pump: how events come from the engine's one completion queue to their requests' sinks.

package io.github.libqwen;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;

/**
 * One platform thread waits inside C for all requests of an engine, however many there are; their readers
 * wait in Java.
 */
final class Pump {
    /** How many events are taken at once. */
    private static final int BATCH = 128;
    /** How long the thread stays inside C, until it looks whether it is to end. */
    private static final long WAIT_MS = 500;

    /** How long it pauses where the heap has no room for what it needs. */
    private static final long PAUSE_NS = 1_000_000;

    private final Handle queue;
    /** Made before, for the end must not fail for want of memory. */
    private final QwenException closed = QwenException.closed("engine");
    private final Thread thread = Workers.daemon("libqwen-pump", this::work);
    private final ReentrantLock lock = new ReentrantLock();
    private final Condition submission = lock.newCondition();
    // All below: under the lock.
    private final Map<Long, Entry> entries = new HashMap<>();
    private long lastTag;
    /** Submissions that the library has accepted. */
    private long submitted;
    private volatile boolean closing;

    private static final class Entry {
        final EventSink sink;
        /** Which submission it was; 0 until it is accepted. */
        long number;

        Entry(EventSink sink) {
            this.sink = sink;
        }
    }

    Pump() {
        queue = new Handle("engine", Native.queueNew(), Native::queueFree);
        thread.start();
    }

    /** Hands a request to the engine. Its events go to the sink until the tag is forgotten. */
    long submit(long request, EventSink sink) {
        long tag = enter(sink);
        try {
            queue.run(object -> Native.requestSubmit(request, object, tag));
        } catch (Throwable e) {
            forget(tag);
            throw e;
        }
        accepted(tag);
        return tag;
    }

    /** Before the submission: its first event may come sooner than this thread gets on. */
    long enter(EventSink sink) {
        lock.lock();
        try {
            entries.put(++lastTag, new Entry(sink));
            return lastTag;
        } finally {
            lock.unlock();
        }
    }

    void accepted(long tag) {
        lock.lock();
        try {
            submitted++;
            Entry entry = entries.get(tag);
            if (entry != null) {
                entry.number = submitted;
            }
            submission.signal();
        } finally {
            lock.unlock();
        }
    }

    void forget(long tag) {
        lock.lock();
        try {
            entries.remove(tag);
        } finally {
            lock.unlock();
        }
    }

    /** Hands out what has come, and ends. The engine has ended, so nothing comes later. */
    void close() {
        lock.lock();
        try {
            closing = true;
            submission.signal();
        } finally {
            lock.unlock();
        }
        if (Thread.currentThread() == thread) {
            return;
        }
        boolean interrupted = false;
        while (thread.isAlive()) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private void work() {
        try {
            while (goesOn()) {
                // All is done in the condition.
            }
            endAll(Long.MAX_VALUE, closed);
        } finally {
            queue.close();
        }
    }

    /**
     * A round that must not end the thread, whatever happens in it: a heap that is full, or a bug, would let all
     * readers wait for ever. What ran then has lost events, and fails; what comes later is served.
     */
    private boolean goesOn() {
        try {
            return round();
        } catch (Throwable e) {
            endAll(Long.MAX_VALUE, lossOf(e));
            return !closing;
        }
    }

    private static QwenException lossOf(Throwable e) {
        try {
            ErrorCode code = e instanceof OutOfMemoryError ? ErrorCode.OOM_HOST : ErrorCode.PANIC;
            return e instanceof QwenException said ? said : QwenException.make(code, "events were lost: " + e, "{}");
        } catch (Throwable again) {
            return EventSink.LOST;
        }
    }

    /** Waits for events and hands them out; false when there will be none. */
    private boolean round() {
        long seen;
        boolean last;
        lock.lock();
        try {
            seen = submitted;
            last = closing;
        } finally {
            lock.unlock();
        }
        byte[] bytes = queue.ask(object -> Native.queueNext(object, BATCH, last ? 0 : WAIT_MS));
        if (bytes == null) {
            return !last;
        }
        if (bytes.length > 0) {
            handOut(bytes);
            return true;
        }
        // The queue has nothing more for anybody.
        endAll(seen, QwenException.make(ErrorCode.END, "no more events will come", "{}"));
        return !last && awaitSubmission(seen);
    }

    private boolean awaitSubmission(long seen) {
        lock.lock();
        try {
            while (submitted == seen && !closing) {
                submission.awaitUninterruptibly();
            }
            return true;
        } finally {
            lock.unlock();
        }
    }

    private void handOut(byte[] bytes) {
        ByteBuffer in = Event.buffer(bytes);
        while (in.hasRemaining()) {
            Event.Received received = Event.read(in);
            EventSink sink = sinkOf(received);
            if (sink == null) {
                continue;
            }
            if (received.isNews()) {
                sink.put(received.event());
            }
            if (received.isLast()) {
                end(sink, received.error());
            }
        }
    }

    /** A sink that fails at its end must not keep the others from theirs. */
    private static void end(EventSink sink, QwenException error) {
        try {
            sink.end(error);
        } catch (Throwable e) {
            // It had been told; nobody else is there to tell.
        }
    }

    private EventSink sinkOf(Event.Received received) {
        lock.lock();
        try {
            Entry entry = received.isLast() ? entries.remove(received.tag()) : entries.get(received.tag());
            return entry == null ? null : entry.sink;
        } finally {
            lock.unlock();
        }
    }

    /** Ends what was submitted up to then: a lost last event must not let its reader wait for ever. Never throws. */
    private void endAll(long upTo, QwenException why) {
        List<EventSink> lost = null;
        while (lost == null) {
            try {
                lost = takeLost(upTo);
            } catch (Throwable noMemory) {
                LockSupport.parkNanos(PAUSE_NS);
            }
        }
        for (int i = 0; i < lost.size(); i++) {
            end(lost.get(i), why);
        }
    }

    /** Takes them all, or throws and takes none. */
    private List<EventSink> takeLost(long upTo) {
        lock.lock();
        try {
            List<EventSink> lost = new ArrayList<>(entries.size());
            entries.values().removeIf(entry -> {
                boolean isLost = entry.number > 0 && entry.number <= upTo;
                return isLost && lost.add(entry.sink);
            });
            return lost;
        } finally {
            lock.unlock();
        }
    }
}
