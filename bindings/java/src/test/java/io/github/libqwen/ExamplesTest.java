// The code that the README shows, run as it stands there.

package io.github.libqwen;

import static org.junit.jupiter.api.Assertions.*;

import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class ExamplesTest {
    private final Path model = Testing.DEMO;
    private final GenerationOptions greedy = Testing.greedy();
    private final StringBuilder out = new StringBuilder();

    private void print(Object text) {
        out.append(text);
    }

    @Test
    void streaming() {
        try (QwenEngine engine = QwenEngine.open(model)) {
            try (TokenStream stream = engine.stream(Prompt.chat("What is the capital of France?", greedy))) {
                for (Event event : stream) {
                    print(event.text()); // whole characters, as they come
                    if (event.kind() == EventKind.FINISHED) {
                        print("\n(" + event.finish().orElseThrow() + ", " + event.usage().completionTokens() + " tokens)");
                    }
                }
            }
            assertEquals("The capital of France is Paris.\n(STOP, 7 tokens)", out.toString());
        }
    }

    @Test
    void sessions() {
        try (QwenEngine engine = QwenEngine.open(model)) {
            SessionOptions system = SessionOptions.builder().system("You are a helpful assistant.").build();
            try (Session session = engine.newSession(system)) {
                session.send("My name is Ada.", greedy);
                try (TokenStream answer = session.stream("What is my name?", greedy)) {
                    answer.forEach(event -> print(event.text()));
                }
            }
            assertFalse(out.isEmpty());
        }
    }

    @Test
    void options() {
        EngineOptions options = EngineOptions.builder().backend("cpu").maxQueueRequests(256).build();
        System.Logger logger = System.getLogger("qwen");
        try (QwenEngine engine = QwenEngine.open(model, options, logger, (done, total) -> { })) {
            print(engine.info().backend());
            Object schema = Json.parse("""
                    {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}},
                     "required": ["age"], "additionalProperties": false}""");
            GenerationOptions json = GenerationOptions.builder().maxTokens(60).temperature(0)
                    .responseFormat(Map.of("type", "json_schema", "json_schema", Map.of("schema", schema)))
                    .build();
            print(Json.parse(engine.complete(Prompt.chat("How old is Ada?", json)).text()) instanceof Map);
        }
        assertEquals("cputrue", out.toString());
    }

    @Test
    void cancellation() {
        GenerationOptions endless = GenerationOptions.builder().maxTokens(1500).ignoreEos(true).build();
        try (QwenEngine engine = QwenEngine.open(model)) {
            CompletableFuture<Reply> reply = engine.completeAsync(Prompt.chat("Count to a thousand.", endless))
                    .orTimeout(200, TimeUnit.MILLISECONDS); // ends the generation as well, as cancel(true) does
            assertThrows(Exception.class, reply::get);
            boolean drained = engine.shutdown(Duration.ofSeconds(10)); // waits for the requests that run
            assertTrue(drained);
        }
    }

    @Test
    void concurrency() {
        try (QwenEngine engine = QwenEngine.open(model)) {
            List<CompletableFuture<Reply>> answers = List.of("France", "Italy", "Spain").stream()
                    .map(country -> Prompt.chat("What is the capital of " + country + "?", greedy))
                    .map(engine::completeAsync).toList();
            answers.forEach(answer -> print(answer.join().text()));
            assertTrue(out.toString().startsWith("The capital of France is Paris."), out.toString());
        }
    }

    private void tryToOpen(Path folder) {
        try (QwenEngine engine = QwenEngine.open(folder)) {
            print(engine.info());
        } catch (QwenException.BadFile e) {
            print("no usable checkpoint: " + e.detail().get("path"));
        } catch (QwenException.OutOfMemory e) {
            print("it does not fit");
        } catch (QwenException e) {
            print(e.code() + ": " + e.getMessage() + " " + e.detailJson());
        }
    }

    @Test
    void errors() {
        tryToOpen(Path.of("/no/such/folder"));
        assertTrue(out.toString().startsWith("no usable checkpoint: /no/such/folder"), out.toString());
    }

    @Test
    void tokens() {
        try (Tokenizer tokenizer = Tokenizer.open(model)) { // needs no weights
            int[] ids = tokenizer.encode("Hello, 世界 🌳");
            print(tokenizer.decodeText(ids));
        }
        assertEquals("Hello, 世界 🌳", out.toString());
    }
}
