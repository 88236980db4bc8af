// Replies as reactive streams.

package io.github.libqwen;

import java.util.concurrent.Executor;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/** One subscriber's reply. Its methods run on the common pool, one at a time, and no thread waits. */
final class EventSubscription implements Flow.Subscription, EventSink {
    /** Not to be collected, and so closed, while the reply is made. */
    private final QwenEngine owner;
    private final Flow.Subscriber<? super Event> subscriber;
    private final Executor executor;
    private final Mailbox mailbox = new Mailbox();
    private final AtomicLong demand = new AtomicLong();
    /** How often something has happened since the subscriber was last looked after. */
    private final AtomicInteger happened = new AtomicInteger();
    private volatile Request request;
    private volatile boolean over;

    EventSubscription(QwenEngine owner, Flow.Subscriber<? super Event> subscriber, Executor executor) {
        this.owner = owner;
        this.subscriber = subscriber;
        this.executor = executor;
    }

    static void begin(QwenEngine owner, Core core, Prompt prompt, Flow.Subscriber<? super Event> subscriber) {
        EventSubscription made = new EventSubscription(owner, java.util.Objects.requireNonNull(subscriber), Workers.COMMON);
        subscriber.onSubscribe(made);
        if (made.over) {
            return;
        }
        try {
            made.request = new Request(core, prompt, made);
        } catch (QwenException e) {
            made.end(e);
        }
        if (made.over) {
            made.release();
        }
    }

    @Override
    public void put(Event event) {
        mailbox.put(event);
        look();
    }

    @Override
    public void end(QwenException error) {
        mailbox.end(error);
        look();
    }

    @Override
    public void request(long number) {
        if (number <= 0) {
            mailbox.end(QwenException.make(ErrorCode.ARG, "a subscriber asks for 1 or more", "{}"));
            demand.set(Long.MAX_VALUE);
        } else {
            demand.accumulateAndGet(number, (old, more) -> old + more < 0 ? Long.MAX_VALUE : old + more);
        }
        look();
    }

    @Override
    public void cancel() {
        over = true;
        release();
    }

    private void release() {
        Request held = request;
        if (held != null) {
            held.close();
        }
    }

    private void look() {
        if (happened.getAndIncrement() == 0) {
            try {
                executor.execute(this::serve);
            } catch (Throwable e) {
                // Nobody looks after the subscriber now: what happens next must have it done.
                happened.set(0);
                throw e;
            }
        }
    }

    private void serve() {
        int seen;
        do {
            seen = happened.get();
            try {
                tell();
            } catch (Throwable e) {
                // A subscriber that throws has broken the contract; it is told nothing more.
                cancel();
            }
        } while (happened.addAndGet(-seen) != 0);
    }

    private void tell() {
        while (!over && demand.get() > 0) {
            Event event = mailbox.poll();
            if (event == null) {
                break;
            }
            demand.updateAndGet(left -> left == Long.MAX_VALUE ? left : left - 1);
            subscriber.onNext(event);
        }
        if (!over && mailbox.isOver()) {
            over = true;
            release();
            QwenException error = mailbox.error();
            if (error == null) {
                subscriber.onComplete();
            } else {
                subscriber.onError(error);
            }
            java.lang.ref.Reference.reachabilityFence(owner);
        }
    }
}
