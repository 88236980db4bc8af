// Every order of ends, also in the middle of calls, and what is forgotten.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

class LifetimeTest {
    @Test
    void everyOrderOfEnds() throws Exception {
        long held = settledHandles(0);
        for (int seed = 0; seed < 24; seed++) {
            QwenEngine engine = openTiny();
            Tokenizer tokenizer = engine.tokenizer();
            Session session = engine.newSession();
            List<AutoCloseable> things = new ArrayList<>(List.of(engine, tokenizer, tokenizer.newDetokenizer(), session,
                    session.stream("x", exactly(1900)), engine.stream(ask("x", 1900))));
            Collections.shuffle(things, new Random(seed));
            for (int round = 0; round < 2; round++) {
                for (AutoCloseable one : things) {
                    one.close();
                }
            }
        }
        assertEquals(held, settledHandles(held));
    }

    @Test
    void afterCloseEverythingIsClosed() {
        QwenEngine engine = openTiny();
        Session session = engine.newSession();
        Tokenizer tokenizer = engine.tokenizer();
        TokenStream stream = engine.stream(ask("x", 1900));
        engine.close();
        Map<String, Executable> calls = Map.of("health", engine::checkHealth, "info", engine::info, "stop", session::stop,
                "stream", stream::stop, "complete", () -> engine.complete(ask("x", 1)), "session", engine::newSession,
                "send", () -> session.send("x"), "tokenizer", engine::tokenizer,
                "score", () -> engine.score("a", "b", GenerationOptions.DEFAULTS),
                "shutdown", () -> engine.shutdown(java.time.Duration.ofSeconds(1)));
        calls.forEach((name, call) -> assertEquals(ErrorCode.CLOSED, assertThrows(QwenException.class, call, name).code()));
        assertThrows(QwenException.class, stream::reply);
        assertTrue(tokenizer.encode("still here").length > 0);
        tokenizer.close();
        fails(ErrorCode.CLOSED, () -> tokenizer.encode("x"));
        assertTrue(engine.completeAsync(ask("x", 1)).isCompletedExceptionally());
        stream.close();
        session.close();
    }

    @Test
    void closeDuringStreams() throws InterruptedException {
        long held = settledHandles(0);
        for (int round = 0; round < 5; round++) {
            QwenEngine engine = openTiny();
            Session session = engine.newSession();
            CountDownLatch begun = new CountDownLatch(9);
            ConcurrentLinkedQueue<Object> ends = new ConcurrentLinkedQueue<>();
            List<Thread> readers = new ArrayList<>();
            for (int i = 0; i < 9; i++) {
                TokenStream stream = i == 8 ? session.stream("x", exactly(1900)) : engine.stream(ask("x", 1900));
                Thread reader = new Thread(() -> {
                    try (stream) {
                        stream.iterator().next();
                        begun.countDown();
                        ends.add(stream.reply());
                    } catch (QwenException e) {
                        ends.add(e.code());
                    }
                });
                reader.start();
                readers.add(reader);
            }
            begun.await();
            List<Thread> closers = new ArrayList<>();
            for (int i = 0; i < 4; i++) {
                closers.add(new Thread(engine::close));
            }
            closers.forEach(Thread::start);
            for (Thread thread : closers) {
                thread.join();
            }
            for (Thread thread : readers) {
                thread.join();
            }
            assertEquals(9, ends.size());
            assertTrue(ends.stream().allMatch(end -> end == ErrorCode.CANCELLED || end == ErrorCode.CLOSED), ends::toString);
        }
        assertEquals(held, settledHandles(held));
    }

    @Test
    void aStreamIsClosedBesideItsReader() throws InterruptedException {
        try (QwenEngine engine = QwenEngine.open(DEMO); Session session = engine.newSession()) {
            for (int round = 0; round < 6; round++) {
                TokenStream stream = round % 2 == 0 ? engine.stream(ask("Tell me a story.", 1500))
                        : session.stream("Tell me a story.", exactly(1500));
                CountDownLatch begun = new CountDownLatch(1);
                ConcurrentLinkedQueue<Object> ends = new ConcurrentLinkedQueue<>();
                Thread reader = new Thread(() -> {
                    try {
                        stream.iterator().next();
                        begun.countDown();
                        ends.add(stream.reply());
                    } catch (QwenException e) {
                        ends.add(e.code());
                    }
                });
                reader.start();
                begun.await();
                stream.close();
                reader.join(TimeUnit.SECONDS.toMillis(20));
                assertTrue(List.of(ErrorCode.CANCELLED, ErrorCode.CLOSED).contains(ends.peek()), ends::toString);
            }
            idle(engine);
            assertEquals(1, session.messages().size());
        }
    }

    private static void forgetOf(QwenEngine engine) {
        engine.newSession();
        engine.stream(ask("x", 1900));
        engine.newSession().stream("x", exactly(1900));
    }

    private static void forgetAll() {
        QwenEngine engine = openTiny();
        engine.tokenizer().newDetokenizer();
        forgetOf(engine);
    }

    @Test
    void whatIsForgottenIsCollected() {
        long before = settledHandles(0);
        try (QwenEngine engine = openTiny()) {
            long held = Handle.LIVE.get();
            forgetOf(engine);
            assertEquals(held, settledHandles(held));
            idle(engine);
        }
        forgetAll();
        assertEquals(before, settledHandles(before));
    }

    private static Reply replyOfAnEngineThatNobodyHolds() {
        return QwenEngine.open(DEMO).completeAsync(ask("x", 40)).join();
    }

    @Test
    void whatIsWaitedForIsNotCollected() {
        AtomicBoolean over = new AtomicBoolean();
        Thread collector = Workers.daemon("collector", () -> {
            while (!over.get()) {
                System.gc();
                pause(20);
            }
        });
        collector.start();
        try {
            // Slow enough that the collector comes while they run.
            assertEquals(40, replyOfAnEngineThatNobodyHolds().tokens().length);
            int tokens = 0;
            for (Event event : QwenEngine.open(DEMO).stream(ask("x", 40))) {
                tokens += event.numTokens();
            }
            assertEquals(40, tokens);
        } finally {
            over.set(true);
        }
    }

    /** A bug of the library's might lose a request's last event: its reader must not wait for ever. */
    @Test
    void aReaderOfALostRequestEnds() {
        Qwen.load();
        Pump pump = new Pump();
        Mailbox mailbox = new Mailbox();
        pump.accepted(pump.enter(mailbox));
        assertTimeoutPreemptively(java.time.Duration.ofSeconds(20), () -> fails(ErrorCode.END, mailbox::take));
        pump.close();
    }

    /** A sink that fails at its first event, and keeps how it ended. */
    private record Broken(Error bug, CompletableFuture<QwenException> end) implements EventSink {
        @Override
        public void put(Event event) {
            throw bug;
        }

        @Override
        public void end(QwenException error) {
            end.complete(error);
        }
    }

    @Test
    void thePumpOutlivesABug() throws Exception {
        try (QwenEngine engine = openTiny()) {
            for (Error bug : List.of(new AssertionError("a bug"), new OutOfMemoryError("a test's"))) {
                Broken broken = new Broken(bug, new CompletableFuture<>());
                Request request = new Request(coreOf(engine), ask("x", 1900), broken);
                ErrorCode code = broken.end.get(20, TimeUnit.SECONDS).code();
                assertEquals(bug instanceof OutOfMemoryError ? ErrorCode.OOM_HOST : ErrorCode.PANIC, code);
                request.close();
                assertEquals(5, engine.complete(ask("x", 5)).tokens().length);
            }
        }
    }

    /** A sink that fails at its first event, and at its end. */
    private record Hopeless(CountDownLatch ended) implements EventSink {
        @Override
        public void put(Event event) {
            throw new UnsupportedOperationException("a bug");
        }

        @Override
        public void end(QwenException error) {
            ended.countDown();
            throw new OutOfMemoryError("a test's");
        }
    }

    @Test
    void aSinkThatFailsAtItsEndHoldsUpNobody() {
        CountDownLatch ended = new CountDownLatch(51);
        assertTimeoutPreemptively(java.time.Duration.ofSeconds(60), () -> {
            try (QwenEngine engine = openTiny()) {
                new Request(coreOf(engine), ask("x", 1900), new Hopeless(ended));
                eventually("its end was tried", () -> ended.getCount() == 50);
                assertEquals(5, engine.complete(ask("x", 5)).tokens().length);
            }
            // So many that several are ended at once.
            Pump pump = new Pump();
            List<Mailbox> others = new ArrayList<>();
            for (int i = 0; i < 50; i++) {
                pump.accepted(pump.enter(new Hopeless(ended)));
                others.add(new Mailbox());
                pump.accepted(pump.enter(others.get(i)));
            }
            for (Mailbox other : others) {
                fails(ErrorCode.END, other::take);
            }
            ended.await();
            pump.close();
        });
    }

    @Test
    void aSessionCallEndsWhateverFails() {
        Mailbox mailbox = new Mailbox();
        SessionCall call = new SessionCall(mailbox);
        Handle handle = new Handle("session", 0, object -> { });
        handle.close();
        assertThrows(OutOfMemoryError.class, () -> call.run(handle, null, false, null, () -> {
            throw new OutOfMemoryError("a test's");
        }));
        assertTimeoutPreemptively(java.time.Duration.ofSeconds(20), () -> {
            fails(ErrorCode.CLOSED, mailbox::take);
            call.close();
        });
    }

    private static Core coreOf(QwenEngine engine) throws ReflectiveOperationException {
        java.lang.reflect.Field field = QwenEngine.class.getDeclaredField("core");
        field.setAccessible(true);
        return (Core) field.get(engine);
    }
}
