// Many at once: threads, streams without threads, futures, publishers, and the end in the middle of it.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;

class ConcurrencyTest {
    private static int threads() {
        return Integer.parseInt(read(Path.of("/proc/self/status")).replaceAll("(?s).*\nThreads:\t(\\d+).*", "$1"));
    }

    @Test
    void aThousandStreamsNeedFewThreads() {
        int streams = 1000;
        try (QwenEngine engine = QwenEngine.open(TINY, small().maxBatchSequences(streams).kvCacheTokens(262144).build())) {
            engine.completeAsync(ask("x", 1)).join();
            int before = threads();
            List<CompletableFuture<Reply>> replies = new ArrayList<>();
            int most = 0;
            for (int i = 0; i < streams; i++) {
                replies.add(engine.completeAsync(ask("stream " + i, 120)));
                most = Math.max(most, threads());
            }
            assertTrue(engine.metrics().requestsRunning() + engine.metrics().requestsWaiting() > streams / 2,
                    "they are not at once: the test tests nothing");
            most = Math.max(most, threads());
            for (CompletableFuture<Reply> reply : replies) {
                assertEquals(120, reply.join().tokens().length);
            }
            // The common pool has as many as there are processors.
            int allowed = 8 + Runtime.getRuntime().availableProcessors();
            assertTrue(most - before <= allowed, most + " threads during " + streams + " streams, " + before + " before");
        }
    }

    @Test
    void aThousandStreamsAreReadByOneThread() {
        int streams = 1000;
        List<TokenStream> all = new ArrayList<>();
        try (QwenEngine engine = QwenEngine.open(TINY, small().maxBatchSequences(streams).build())) {
            for (int i = 0; i < streams; i++) {
                all.add(engine.stream(ask("stream " + i, 20)));
            }
            for (TokenStream stream : all) {
                assertEquals(20, stream.reply().tokens().length);
            }
        }
        all.forEach(TokenStream::close);
    }

    @Test
    void sixtyFourThreadsGetTheirOwnReplies() throws InterruptedException {
        int threads = 64;
        try (QwenEngine engine = openTiny()) {
            List<String> alone = new ArrayList<>();
            for (int i = 0; i < threads; i++) {
                alone.add(engine.complete(ask("number " + i, 30)).text());
            }
            assertTrue(alone.stream().distinct().count() > threads / 2, "the replies are all the same");
            ConcurrentLinkedQueue<String> wrong = new ConcurrentLinkedQueue<>();
            List<Thread> all = new ArrayList<>();
            for (int i = 0; i < threads; i++) {
                int number = i;
                Thread thread = new Thread(() -> {
                    for (int round = 0; round < 3; round++) {
                        try (TokenStream stream = engine.stream(ask("number " + number, 30))) {
                            StringBuilder text = new StringBuilder();
                            stream.forEach(event -> text.append(event.text()));
                            if (!text.toString().equals(alone.get(number))) {
                                wrong.add(number + ": " + text);
                            }
                        } catch (RuntimeException e) {
                            wrong.add(number + ": " + e);
                        }
                    }
                });
                thread.start();
                all.add(thread);
            }
            for (Thread thread : all) {
                thread.join();
            }
            assertTrue(wrong.isEmpty(), wrong::toString);
        }
    }

    @Test
    void futuresReachTheEngine() throws Exception {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            CompletableFuture<Reply> cancelled = engine.completeAsync(ask("Tell me a long story.", 1500));
            eventually("it runs", () -> engine.metrics().generatedTokens() > 0);
            assertTrue(cancelled.cancel(true));
            assertThrows(CancellationException.class, cancelled::join);
            idle(engine);
            CompletableFuture<Reply> late = engine.completeAsync(ask("Tell me a long story.", 1500))
                    .orTimeout(200, TimeUnit.MILLISECONDS);
            assertInstanceOf(TimeoutException.class, assertThrows(ExecutionException.class, late::get).getCause());
            idle(engine);
            Metrics metrics = engine.metrics();
            assertEquals(2, metrics.requestsCancelled());
            assertTrue(metrics.generatedTokens() < 800, metrics.toString());
            // What waits for a future runs on no thread that other replies need.
            String thread = engine.completeAsync(ask("x", 1)).thenApply(reply -> Thread.currentThread().getName()).join();
            assertTrue(thread.contains("commonPool"), thread);
        }
        QwenEngine engine = openTiny();
        CompletableFuture<Reply> bad = engine.completeAsync(ask("x".repeat(5000), 1));
        assertInstanceOf(QwenException.ContextFull.class, assertThrows(CompletionException.class, bad::join).getCause());
        CompletableFuture<Reply> cut = engine.completeAsync(ask("x", 1900));
        engine.close();
        assertInstanceOf(QwenException.class, assertThrows(CompletionException.class, cut::join).getCause());
    }

    /** A subscriber that asks for one event at a time, and cancels after so many; with 0 it asks once. */
    private static final class Subscriber implements Flow.Subscriber<Event> {
        final List<Event> events = java.util.Collections.synchronizedList(new ArrayList<>());
        final CountDownLatch end = new CountDownLatch(1);
        final AtomicInteger inside = new AtomicInteger();
        final int most;
        volatile Throwable error;
        volatile boolean overlapped;
        private Flow.Subscription subscription;

        Subscriber(int most) {
            this.most = most;
        }

        @Override
        public void onSubscribe(Flow.Subscription given) {
            subscription = given;
            given.request(1);
        }

        @Override
        public void onNext(Event event) {
            overlapped |= inside.incrementAndGet() != 1;
            events.add(event);
            if (events.size() == most) {
                subscription.cancel();
                end.countDown();
            } else if (most > 0) {
                subscription.request(1);
            }
            inside.decrementAndGet();
        }

        @Override
        public void onError(Throwable why) {
            error = why;
            end.countDown();
        }

        @Override
        public void onComplete() {
            end.countDown();
        }
    }

    @Test
    void publishersKeepTheContract() throws InterruptedException {
        try (QwenEngine engine = openTiny()) {
            String text = engine.complete(ask("x", 50)).text();
            Flow.Publisher<Event> publisher = engine.publisher(ask("x", 50));
            for (int i = 0; i < 2; i++) {
                Subscriber whole = new Subscriber(Integer.MAX_VALUE);
                publisher.subscribe(whole);
                assertTrue(whole.end.await(20, TimeUnit.SECONDS));
                assertNull(whole.error);
                StringBuilder told = new StringBuilder();
                whole.events.forEach(event -> told.append(event.text()));
                assertEquals(text, told.toString());
                assertFalse(whole.overlapped);
            }
            Subscriber slow = new Subscriber(0);
            publisher.subscribe(slow);
            idle(engine);
            pause(100);
            assertEquals(1, slow.events.size(), "it asked for one");
            slow.subscription.request(Long.MAX_VALUE);
            assertTrue(slow.end.await(20, TimeUnit.SECONDS));
            assertEquals(50, slow.events.stream().mapToInt(Event::numTokens).sum());
            Subscriber bad = new Subscriber(Integer.MAX_VALUE);
            engine.publisher(ask("x".repeat(5000), 1)).subscribe(bad);
            assertTrue(bad.end.await(20, TimeUnit.SECONDS));
            assertInstanceOf(QwenException.ContextFull.class, bad.error);
        }
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            Subscriber few = new Subscriber(3);
            engine.publisher(ask("Tell me a long story.", 1500)).subscribe(few);
            assertTrue(few.end.await(20, TimeUnit.SECONDS));
            idle(engine);
            assertEquals(3, few.events.size());
            assertEquals(1, engine.metrics().requestsCancelled());
        }
    }

    @Test
    void aSubscriberIsLookedAfterWhenThereIsAThreadAgain() {
        AtomicInteger tries = new AtomicInteger();
        Subscriber subscriber = new Subscriber(Integer.MAX_VALUE);
        EventSubscription subscription = new EventSubscription(null, subscriber, task -> {
            if (tries.getAndIncrement() == 0) {
                throw new OutOfMemoryError("a test's");
            }
            task.run();
        });
        assertThrows(OutOfMemoryError.class, () -> subscriber.onSubscribe(subscription));
        subscription.put(new Event(EventKind.STARTED, 0, "", null, new int[0], List.of()));
        subscription.end(null);
        assertEquals(1, subscriber.events.size());
        assertEquals(0, subscriber.end.getCount());
    }

    private interface Work {
        void run(int i);
    }

    /** Everything at once, and the end in the middle of it: for crashes, and for what nobody thought of. */
    @Test
    void aSoakThatEndsInTheMiddle() throws InterruptedException {
        QwenEngine engine = QwenEngine.open(TINY, small().maxQueueRequests(8).build());
        Tokenizer tokenizer = engine.tokenizer();
        List<Work> work = List.of(
                i -> engine.complete(ask("x", i % 40 + 1)),
                i -> {
                    try (TokenStream stream = engine.stream(ask("x", 1900))) {
                        stream.events().limit(i % 7 + 1).forEach(event -> { });
                    }
                },
                i -> {
                    try (TokenStream stream = engine.stream(ask("x", 1900))) {
                        Workers.POOL.execute(stream::close);
                        stream.reply();
                    }
                },
                i -> {
                    CompletableFuture<Reply> future = engine.completeAsync(ask("x", 1900));
                    pause(i % 3);
                    future.cancel(false);
                },
                i -> {
                    try (Session session = engine.newSession()) {
                        TokenStream stream = session.stream("x", exactly(i % 40 + 1));
                        Workers.POOL.execute(stream::cancel);
                        Workers.POOL.execute(session::close);
                        stream.reply();
                    }
                },
                i -> tokenizer.encode("some text"),
                i -> engine.metrics(),
                i -> engine.score("a", "b", GenerationOptions.DEFAULTS));
        AtomicLong done = new AtomicLong();
        AtomicReference<Throwable> wrong = new AtomicReference<>();
        List<Thread> threads = new ArrayList<>();
        for (int worker = 0; worker < 64; worker++) {
            int first = worker;
            Thread thread = new Thread(() -> {
                for (int i = first; ; i++) {
                    try {
                        work.get(i % work.size()).run(i);
                    } catch (QwenException e) {
                        boolean expected = List.of(ErrorCode.CANCELLED, ErrorCode.QUEUE_FULL, ErrorCode.CLOSED).contains(e.code());
                        if (!expected) {
                            wrong.set(e);
                            return;
                        }
                    } catch (Throwable e) {
                        wrong.set(e);
                        return;
                    }
                    done.incrementAndGet();
                    try {
                        engine.checkHealth();
                    } catch (QwenException e) {
                        return;
                    }
                }
            });
            thread.start();
            threads.add(thread);
        }
        pause(2000);
        engine.close();
        for (Thread thread : threads) {
            thread.join(TimeUnit.SECONDS.toMillis(20));
            assertFalse(thread.isAlive(), "a thread never ended");
        }
        tokenizer.close();
        if (wrong.get() != null) {
            throw new AssertionError(wrong.get());
        }
        assertTrue(done.get() > 100, "it was no soak: " + done.get() + " calls");
    }
}
