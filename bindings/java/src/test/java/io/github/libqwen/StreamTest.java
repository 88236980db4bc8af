// Streams: what comes, how they end, and that an end reaches the engine.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.*;

import java.io.ByteArrayOutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

class StreamTest {
    /** Text that Java can have but no model writes: whole characters only. */
    private static boolean isWhole(String text) {
        return new String(text.getBytes(UTF_8), UTF_8).equals(text);
    }

    @Test
    void aStreamIsTheReply() {
        try (QwenEngine engine = openTiny(); Tokenizer tokenizer = engine.tokenizer()) {
            Reply whole = engine.complete(ask("hello", 200));
            StringBuilder text = new StringBuilder();
            ByteArrayOutputStream written = new ByteArrayOutputStream();
            List<Integer> ids = new ArrayList<>();
            Event last = null;
            try (TokenStream stream = engine.stream(ask("hello", 200))) {
                for (Event event : stream) {
                    assertTrue(isWhole(event.text()), "half a character");
                    text.append(event.text());
                    written.writeBytes(event.bytes());
                    Arrays.stream(event.tokens()).forEach(ids::add);
                    last = event;
                }
            }
            assertEquals(EventKind.FINISHED, last.kind());
            assertEquals(FinishReason.LENGTH, last.finish().orElseThrow());
            assertEquals(200, last.usage().completionTokens());
            int[] all = ids.stream().mapToInt(Integer::intValue).toArray();
            assertEquals(whole.text(), text.toString());
            assertArrayEquals(whole.tokens(), all);
            byte[] decoded = tokenizer.decode(all);
            assertArrayEquals(decoded, written.toByteArray());
            assertFalse(Arrays.equals(new String(decoded, UTF_8).getBytes(UTF_8), decoded),
                    "a random reply is expected to have bytes that are no UTF-8: the test tests nothing");
            int[] prompt = tokenizer.renderChat(List.of(Message.user("hello")), 0);
            assertEquals(last.usage().promptTokens(), prompt.length);
            assertEquals(whole.text(), engine.complete(new Prompt.Tokens(prompt, exactly(200))).text());
            try (TokenStream stream = engine.stream(ask("hello", 200))) {
                assertEquals(whole.text(), stream.events().map(Event::text).collect(Collectors.joining()));
            }
        }
    }

    @Test
    void emojiGoThereAndBack() {
        try (QwenEngine engine = QwenEngine.open(DEMO); Tokenizer tokenizer = engine.tokenizer()) {
            for (String text : List.of("🌳", "👩‍👩‍👧‍👦 𝄞", "a\0b", "日本語 é", "")) {
                assertEquals(text, tokenizer.decodeText(tokenizer.encode(text)));
                try (Session session = engine.newSession()) {
                    session.append(Message.user(text), Message.assistant(text));
                    session.setSystem(text);
                    List<String> said = session.messages().stream().map(Message::content).toList();
                    assertEquals(List.of(text, text, text), said);
                }
            }
            GenerationOptions emoji = greedy().toBuilder().responseFormat(
                    java.util.Map.of("type", "regex", "regex", "(👩‍👩‍👧|🌳𝄞){4}")).build();
            StringBuilder text = new StringBuilder();
            try (TokenStream stream = engine.stream(Prompt.chat("Say 🌳.", emoji.toBuilder().maxTokens(200).build()))) {
                for (Event event : stream) {
                    assertTrue(isWhole(event.text()), () -> "half a character: " + event);
                    text.append(event.text());
                }
            }
            assertTrue(text.toString().matches("(👩‍👩‍👧|🌳𝄞){4}"), text.toString());
        }
    }

    @Test
    void halfCharactersAreRefused() {
        try (QwenEngine engine = openTiny(); Session session = engine.newSession(); Tokenizer tokenizer = engine.tokenizer()) {
            for (String bad : List.of("ab\uD83C", "ab\uDF33", "ab\uDF33\uD83C", "ab\uD83Cx")) {
                GenerationOptions stop = GenerationOptions.builder().stop(bad).build();
                List<org.junit.jupiter.api.function.Executable> calls = List.of(
                        () -> engine.complete(ask(bad, 1)), stop::canonicalJson, () -> session.send(bad),
                        () -> session.append(Message.user(bad), Message.assistant("b")),
                        () -> session.setSystem(bad), () -> session.edit(0, bad), () -> tokenizer.encode(bad),
                        () -> engine.newSession(SessionOptions.builder().system(bad).build()),
                        () -> engine.score("a", bad, GenerationOptions.DEFAULTS));
                for (int i = 0; i < calls.size(); i++) {
                    QwenException why = fails(ErrorCode.UTF8, calls.get(i));
                    assertEquals(2L, why.detail().get("offset"), "call " + i);
                }
            }
        }
    }

    @Test
    void leavingTheStreamCancels() {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            try (TokenStream stream = engine.stream(ask("Tell me a long story.", 1500))) {
                for (Event event : stream) {
                    if (event.kind() == EventKind.DELTA) {
                        break;
                    }
                }
            }
            idle(engine);
            assertTrue(engine.metrics().generatedTokens() < 1500);
        }
    }

    @Test
    void anInterruptReachesTheEngine() throws InterruptedException {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            CountDownLatch begun = new CountDownLatch(1);
            AtomicReference<Throwable> why = new AtomicReference<>();
            AtomicReference<Boolean> interrupted = new AtomicReference<>();
            Thread reader = new Thread(() -> {
                try (TokenStream stream = engine.stream(ask("Tell me a long story.", 1500))) {
                    for (Event event : stream) {
                        begun.countDown();
                    }
                } catch (QwenException e) {
                    why.set(e);
                    interrupted.set(Thread.currentThread().isInterrupted());
                }
            });
            reader.start();
            begun.await();
            reader.interrupt();
            reader.join();
            assertInstanceOf(QwenException.Cancelled.class, why.get());
            assertInstanceOf(InterruptedException.class, why.get().getCause());
            assertTrue(interrupted.get());
            idle(engine);
            assertEquals(1, engine.metrics().requestsCancelled());
        }
    }

    /** A long prompt is computed in many steps: a cancel must not wait for the last of them. */
    @Test
    void aCancelDuringThePromptEndsIt() {
        EngineOptions options = EngineOptions.builder().prefillChunkTokens(16).build();
        try (QwenEngine engine = QwenEngine.open(DEMO, options); Tokenizer tokenizer = engine.tokenizer()) {
            String text = "one two three ".repeat(2000);
            int prompt = tokenizer.renderChat(List.of(Message.user(text)), 0).length;
            try (TokenStream stream = engine.stream(ask(text, 10))) {
                assertEquals(EventKind.STARTED, stream.iterator().next().kind());
                stream.cancel();
                fails(ErrorCode.CANCELLED, stream::reply);
            }
            idle(engine);
            long computed = engine.metrics().computedTokens();
            assertTrue(prompt > 2000 && computed < prompt, computed + " of " + prompt + " tokens were computed");
        }
    }

    @Test
    void stopKeepsTheReply() {
        try (QwenEngine engine = openTiny()) {
            TokenStream stream = engine.stream(ask("x", 1900));
            long tokens = 0;
            Event last = null;
            for (Event event : stream) {
                tokens += event.numTokens();
                if (event.kind() == EventKind.DELTA) {
                    stream.stop();
                }
                last = event;
            }
            assertEquals(FinishReason.CANCELLED, last.finish().orElseThrow());
            assertTrue(tokens > 0 && tokens == last.usage().completionTokens());
            assertFalse(stream.iterator().hasNext());
            stream.close();
            stream.close();
            fails(ErrorCode.CLOSED, stream::stop);
            try (TokenStream cancelled = engine.stream(ask("x", 1900))) {
                cancelled.cancel();
                fails(ErrorCode.CANCELLED, cancelled::reply);
            }
        }
    }

    @Test
    void theQueueRefuses() {
        // Slow enough that none is finished before the last comes.
        EngineOptions narrow = EngineOptions.builder().maxBatchSequences(1).maxQueueRequests(1).build();
        List<TokenStream> streams = new ArrayList<>();
        try (QwenEngine engine = QwenEngine.open(DEMO, narrow)) {
            QwenException full = fails(ErrorCode.QUEUE_FULL, () -> {
                for (int i = 0; i < 10; i++) {
                    streams.add(engine.stream(ask("x", 1500)));
                }
            });
            assertInstanceOf(QwenException.QueueFull.class, full);
        }
        streams.forEach(TokenStream::close);
        try (QwenEngine engine = openTiny()) {
            QwenException full = fails(ErrorCode.CONTEXT_FULL, () -> engine.complete(ask("x".repeat(5000), 1)));
            assertInstanceOf(QwenException.ContextFull.class, full);
        }
    }

    @Test
    void deadlinesAreTimeouts() {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            GenerationOptions hurry = exactly(1500).toBuilder().deadlineMs(100).build();
            QwenException why = fails(ErrorCode.DEADLINE, () -> engine.complete(Prompt.chat("x", hurry)));
            assertInstanceOf(QwenException.Timeout.class, why);
        }
    }

    @Test
    void aReplyThatIsCompleteOutlivesItsEngine() {
        QwenEngine engine = openTiny();
        try (TokenStream stream = engine.stream(ask("x", 50))) {
            idle(engine);
            engine.close();
            Reply reply = stream.reply();
            assertEquals(50, reply.tokens().length);
            assertEquals(FinishReason.LENGTH, reply.finish());
        }
    }

    @Test
    void choicesAreToldApart() {
        try (QwenEngine engine = openTiny()) {
            GenerationOptions three = exactly(8).toBuilder().n(3).build();
            int[] tokens = new int[3];
            try (TokenStream stream = engine.stream(Prompt.chat("x", three))) {
                stream.forEach(event -> tokens[event.choice()] += event.numTokens());
            }
            assertArrayEquals(new int[] {8, 8, 8}, tokens);
            assertEquals(8, engine.complete(Prompt.chat("x", three)).tokens().length);
        }
    }

    @Test
    void lateReadersGetJoinedEvents() throws InterruptedException {
        Mailbox mailbox = new Mailbox();
        mailbox.put(event(EventKind.STARTED, "", null));
        mailbox.put(event(EventKind.DELTA, "a", null, 1));
        mailbox.put(event(EventKind.DELTA, "\uFFFD", new byte[] {(byte) 0xff}, 2));
        mailbox.put(event(EventKind.DELTA, "b", null, 3));
        mailbox.put(event(EventKind.FINISHED, "", null));
        mailbox.end(null);
        assertEquals(EventKind.STARTED, mailbox.take().kind());
        Event joined = mailbox.take();
        assertEquals("a\uFFFDb", joined.text());
        assertArrayEquals(new byte[] {'a', (byte) 0xff, 'b'}, joined.bytes());
        assertArrayEquals(new int[] {1, 2, 3}, joined.tokens());
        assertEquals(EventKind.FINISHED, mailbox.take().kind());
        assertNull(mailbox.take());
    }

    private static Event event(EventKind kind, String text, byte[] written, int... tokens) {
        return new Event(kind, 0, text, written, tokens, List.of());
    }
}
