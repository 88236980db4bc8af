// A mailbox holds a reply's events until its reader takes them.

package io.github.libqwen;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Whoever delivers never waits; what the reader is late for comes joined, so it holds no more than the
 * reply. The reader waits on a condition of Java, where a virtual thread gives its carrier away.
 */
final class Mailbox implements EventSink {
    private final ReentrantLock lock = new ReentrantLock();
    private final Condition news = lock.newCondition();
    private final ArrayDeque<Event> events = new ArrayDeque<>();
    private boolean ended;
    private QwenException error;

    @Override
    public void put(Event event) {
        lock.lock();
        try {
            events.add(event);
            news.signal();
        } finally {
            lock.unlock();
        }
    }

    @Override
    public void end(QwenException why) {
        lock.lock();
        try {
            if (!ended) {
                ended = true;
                error = why;
            }
            news.signalAll();
        } finally {
            lock.unlock();
        }
    }

    /** Waits for the next event; null at the end of a reply that ended well. */
    Event take() throws InterruptedException {
        lock.lockInterruptibly();
        try {
            while (events.isEmpty() && !ended) {
                news.await();
            }
            Event first = events.poll();
            if (first != null) {
                return withFollowers(first);
            }
            if (error != null) {
                throw error.here();
            }
            return null;
        } finally {
            lock.unlock();
        }
    }

    /** The next event if one is there; null otherwise. */
    Event poll() {
        lock.lock();
        try {
            Event first = events.poll();
            return first == null ? null : withFollowers(first);
        } finally {
            lock.unlock();
        }
    }

    /** Whether all has been taken and nothing will come. */
    boolean isOver() {
        lock.lock();
        try {
            return ended && events.isEmpty();
        } finally {
            lock.unlock();
        }
    }

    /** How it ended, once it is over; null for a good end. */
    QwenException error() {
        lock.lock();
        try {
            return error;
        } finally {
            lock.unlock();
        }
    }

    private Event withFollowers(Event first) {
        if (events.isEmpty() || !first.isFollowedBy(events.peek())) {
            return first;
        }
        List<Event> deltas = new ArrayList<>(List.of(first));
        while (!events.isEmpty() && first.isFollowedBy(events.peek())) {
            deltas.add(events.poll());
        }
        return Event.joined(deltas);
    }
}
