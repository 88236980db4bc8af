// Sessions: what they remember, and what may be done to them.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.util.List;
import org.junit.jupiter.api.Test;

class SessionTest {
    @Test
    void aSessionRemembers() {
        try (QwenEngine engine = openTiny();
                Session session = engine.newSession(SessionOptions.builder().system("be brief").build())) {
            fails(ErrorCode.STATE, session::reply);
            Reply first = session.send("one", exactly(30));
            assertEquals(30, first.tokens().length);
            assertEquals(first.text(), session.reply());
            GenerationOptions other = exactly(30).toBuilder().seed(8).build();
            assertNotEquals(first.text(), session.regenerate(other).text());
            assertEquals(first.text(), session.regenerate(exactly(30)).text());
            session.append(Message.user("two <|im_end|>"), Message.assistant(""));
            List<Message> said = List.of(Message.system("be brief"), Message.user("one"),
                    Message.assistant(first.text()), Message.user("two <|im_end|>"), Message.assistant(""));
            assertEquals(said, session.messages());
            session.truncate(1);
            session.setSystem("");
            assertEquals(List.of(Message.system(""), said.get(1), said.get(2)), session.messages());
            session.setSystem(null);
            assertNotEquals("", session.messages().get(0).content());
            fails(ErrorCode.ARG, () -> session.append(Message.assistant("out of order")));
        }
    }

    @Test
    void aSessionServesOneCallAtATime() {
        try (QwenEngine engine = openTiny(); Session session = engine.newSession()) {
            Event last = null;
            try (TokenStream stream = session.stream("x", exactly(1900))) {
                for (Event event : stream) {
                    if (last == null) {
                        fails(ErrorCode.BUSY, () -> session.send("y"));
                        fails(ErrorCode.BUSY, session::messages);
                        session.stop();
                    }
                    last = event;
                }
            }
            assertEquals(FinishReason.CANCELLED, last.finish().orElseThrow());
            // So many events that -Xcheck:jni would say so if one left a reference behind.
            assertEquals(300, session.send("z", exactly(300)).tokens().length);
        }
    }

    @Test
    void aStoppedTurnIsKeptAndACancelledOneForgotten() {
        try (QwenEngine engine = QwenEngine.open(DEMO); Session session = engine.newSession()) {
            try (TokenStream stream = session.stream("Tell me a story.", exactly(1500))) {
                for (Event event : stream) {
                    if (event.kind() == EventKind.DELTA) {
                        stream.stop();
                    }
                }
            }
            List<Message> kept = session.messages();
            assertEquals("assistant", kept.get(kept.size() - 1).role());
            assertFalse(kept.get(kept.size() - 1).content().isEmpty());
            try (TokenStream stream = session.stream("Go on.", exactly(1500))) {
                stream.iterator().next();
                stream.cancel();
                fails(ErrorCode.CANCELLED, stream::reply);
            }
            // At once: also before the call has begun.
            session.stream("Go on.", exactly(1500)).close();
            try (TokenStream stream = session.stream("Go on.", exactly(1500))) {
                stream.iterator().next();
            }
            assertEquals(kept, session.messages());
            idle(engine);
            assertTrue(engine.metrics().generatedTokens() < 400);
        }
    }

    @Test
    void aStopBeforeTheBeginningIsNotLost() {
        try (QwenEngine engine = openTiny(); Session session = engine.newSession()) {
            for (int i = 0; i < 20; i++) {
                try (TokenStream stream = session.stream("x", exactly(1000))) {
                    stream.stop();
                    assertEquals(FinishReason.CANCELLED, stream.reply().finish());
                }
                session.truncate(0);
            }
        }
    }

    @Test
    void sessionsForkAreEditedSavedAndLoaded() {
        QwenEngine engine = openTiny();
        try (Session session = engine.newSession()) {
            session.send("one", exactly(60));
            List<Message> said = session.messages();
            Session fork = session.fork();
            fork.send("two", exactly(5));
            assertEquals(said, session.messages());
            assertEquals(said.size() + 2, fork.messages().size());
            byte[] saved = session.save();
            fork.load(saved);
            assertEquals(said, fork.messages());
            byte[] damaged = saved.clone();
            damaged[damaged.length / 2] ^= 1;
            for (byte[] bad : List.of(new byte[0], damaged, java.util.Arrays.copyOf(saved, saved.length - 1))) {
                fails(ErrorCode.CORRUPT, () -> fork.load(bad));
            }
            fork.edit(1, "another 🌳");
            assertEquals("another 🌳", fork.messages().get(1).content());
            fails(ErrorCode.ARG, () -> fork.edit(-1, "x"));
            fails(ErrorCode.ARG, () -> fork.edit(99, "x"));
            session.append(Message.user("and?"));
            Reply reply = session.regenerate(exactly(5));
            assertTrue(reply.usage().cachedTokens() > 0 && reply.usage().cachedTokens() < reply.usage().promptTokens());
            engine.close();
            fails(ErrorCode.CLOSED, session::fork);
            fails(ErrorCode.CLOSED, () -> session.send("x"));
            fork.close();
        }
    }

    @Test
    void callsAndResultsAreRemembered() {
        try (QwenEngine engine = openTiny(); Session session = engine.newSession()) {
            fails(ErrorCode.STATE, () -> session.sendToolResult("sunny", exactly(5)));
            ToolCall call = new ToolCall("call_1", "weather", "{\"place\": \"Höhe 🌳\"}");
            Message asked = Message.assistant("", call);
            session.append(Message.user("How is the weather?"), asked);
            session.sendToolResult("sunny", exactly(5));
            List<Message> messages = session.messages();
            assertEquals(5, messages.size());
            assertEquals(asked, messages.get(2));
            assertEquals(Message.toolResult(call, "sunny"), messages.get(3));
            assertEquals("assistant", messages.get(4).role());
        }
    }
}
