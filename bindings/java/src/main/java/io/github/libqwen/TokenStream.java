// Streams: a reply's events as they come.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/**
 * A reply that is being made. The last event is a FINISHED; a reply that fails throws in its place. Close
 * it, which cancels what still runs.
 *
 * <p>One thread reads; any thread may stop, cancel and close it, also while another reads. A thread that
 * is interrupted while it waits for an event gets a {@link QwenException.Cancelled}, and the reply is
 * cancelled. Waiting never pins a virtual thread.
 */
public final class TokenStream implements Iterable<Event>, AutoCloseable {
    /** Where the events come from. */
    interface Source {
        void cancel(int how);

        /** Cancels and lets go; may wait for that, no longer than a step of the engine. */
        void close();

        /** The same without waiting, for the cleaner. */
        void forget();
    }

    private final Mailbox mailbox;
    private final Source source;
    /** Not to be collected, and so closed, while somebody reads. */
    private final Object owner;
    private final Cleaner.Cleanable cleanable;
    private final EventIterator iterator = new EventIterator();

    TokenStream(Mailbox mailbox, Source source, Object owner) {
        this.mailbox = mailbox;
        this.source = source;
        this.owner = owner;
        cleanable = Qwen.CLEANER.register(this, source::forget);
    }

    /**
     * The events, from where the last reader left off.
     *
     * @return always the same iterator
     */
    @Override
    public Iterator<Event> iterator() {
        return iterator;
    }

    /**
     * The same as a stream of the JDK, which is closed with this.
     *
     * @return a sequential stream
     */
    public Stream<Event> events() {
        int known = Spliterator.ORDERED | Spliterator.NONNULL;
        return StreamSupport.stream(Spliterators.spliteratorUnknownSize(iterator, known), false).onClose(this::close);
    }

    /**
     * Reads to the end.
     *
     * @return the reply, without the events that were read before
     */
    public Reply reply() {
        Reply.Collector collector = new Reply.Collector();
        for (Event event : this) {
            collector.add(event);
        }
        return collector.reply();
    }

    /** Ends the reply within one step of the engine, and keeps it: the last event is a FINISHED. */
    public void stop() {
        cancel(Constants.STOP);
    }

    /** Ends the reply within one step; reading it throws a {@link QwenException.Cancelled}. */
    public void cancel() {
        cancel(Constants.CANCEL);
    }

    private void cancel(int how) {
        try {
            source.cancel(how);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** Cancels the reply if it is still being made, and lets it go. Again, it does nothing. */
    @Override
    public void close() {
        source.close();
        cleanable.clean();
        Reference.reachabilityFence(owner);
    }

    private final class EventIterator implements Iterator<Event> {
        private Event next;
        private boolean over;

        @Override
        public boolean hasNext() {
            if (next == null && !over) {
                next = take();
                over = next == null;
            }
            return next != null;
        }

        @Override
        public Event next() {
            if (!hasNext()) {
                throw new NoSuchElementException();
            }
            Event taken = next;
            next = null;
            return taken;
        }

        private Event take() {
            try {
                return mailbox.take();
            } catch (InterruptedException e) {
                TokenStream.this.close();
                throw QwenException.interrupted(e);
            } finally {
                Reference.reachabilityFence(TokenStream.this);
            }
        }
    }
}
