// Tokenizers, log-probabilities, scores, embeddings, tools and formats, as far as the binding carries them: what they
// are is tested in Rust.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.*;

import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class AnalysisTest {
    /** golden_tokens.jsonl is by Python's tiktoken. */
    @Test
    void tokensAreThoseOfTiktoken() {
        int checked = 0;
        try (Tokenizer tokenizer = Tokenizer.open(VOCABULARY)) {
            for (String line : read(ROOT.resolve("tests/data/golden_tokens.jsonl")).split("\n")) {
                if (!line.startsWith("[")) {
                    continue; // the line that says where the others come from
                }
                List<?> pair = (List<?>) Json.parse(line);
                int[] golden = ((List<?>) pair.get(1)).stream().mapToInt(id -> ((Long) id).intValue()).toArray();
                int[] ids = tokenizer.encode((String) pair.get(0));
                assertArrayEquals(golden, ids, () -> "of " + pair.get(0));
                // The text itself may come back normalised (NFC), as Qwen's tokenizer has it.
                assertArrayEquals(golden, tokenizer.encode(new String(tokenizer.decode(ids), UTF_8)));
                checked++;
            }
        }
        assertTrue(checked > 100, checked + " lines were checked");
    }

    @Test
    void tokenizerFlagsAndParts() {
        try (Tokenizer tokenizer = Tokenizer.open(VOCABULARY); Detokenizer detokenizer = tokenizer.newDetokenizer()) {
            Tokenizer.Info info = tokenizer.info();
            int[] parsed = tokenizer.encode("<|im_end|>", EncodeFlag.PARSE_SPECIALS);
            assertTrue(tokenizer.encode("<|im_end|>").length > 1);
            assertArrayEquals(new int[] {info.imEnd()}, parsed);
            assertEquals("<|im_end|>", new String(tokenizer.decode(parsed, DecodeFlag.KEEP_SPECIALS), UTF_8));
            assertEquals(0, tokenizer.decode(parsed).length);
            assertEquals("<|im_start|>", new String(tokenizer.tokenBytes(info.imStart()), UTF_8));
            fails(ErrorCode.ARG, () -> tokenizer.tokenBytes(-1));
            assertEquals(0, tokenizer.encode("").length);
            int[] sign = tokenizer.encode("𓀀");
            assertTrue(sign.length > 1);
            assertTrue(tokenizer.decodeText(new int[] {sign[0]}).contains("\uFFFD"));
            StringBuilder text = new StringBuilder();
            for (int id : sign) {
                text.append(detokenizer.push(id));
            }
            assertEquals("𓀀", text + detokenizer.finish());
            assertEquals("\uFFFD", detokenizer.push(sign[0]) + detokenizer.finish());
        }
    }

    @Test
    void logprobsAreOfTheTokens() {
        try (QwenEngine engine = openTiny(); Tokenizer tokenizer = engine.tokenizer()) {
            GenerationOptions options = exactly(40).toBuilder().temperature(0).repetitionPenalty(1).logprobs(true)
                    .topLogprobs(3).build();
            Reply reply = engine.complete(Prompt.chat("x", options));
            assertEquals(40, reply.logprobs().size());
            for (int i = 0; i < 40; i++) {
                TokenLogprob one = reply.logprobs().get(i);
                assertEquals(reply.tokens()[i], one.id());
                assertTrue(one.logprob() < 0 && one.top().size() == 3, one::toString);
                assertArrayEquals(tokenizer.tokenBytes(one.id()), one.bytes());
                // A greedy reply has the likeliest token in each place.
                assertEquals(one.id(), one.top().get(0).id());
                assertEquals(one.logprob(), one.top().get(0).logprob());
                assertTrue(one.top().get(0).logprob() >= one.top().get(1).logprob()
                        && one.top().get(1).logprob() >= one.top().get(2).logprob());
            }
            assertTrue(engine.complete(ask("x", 5)).logprobs().isEmpty());
            try (Session session = engine.newSession()) {
                assertEquals(40, session.send("x", options).logprobs().size());
            }
        }
    }

    @Test
    void scores() {
        try (QwenEngine engine = openTiny(); Tokenizer tokenizer = engine.tokenizer()) {
            Score score = engine.score("hello", " world", GenerationOptions.DEFAULTS);
            double sum = score.tokens().stream().mapToDouble(Score.Token::logprob).sum();
            assertTrue(score.logprob() < 0 && !score.tokens().isEmpty());
            assertEquals(score.logprob(), sum, 1e-9);
            assertEquals(score.isGreedy(), score.tokens().stream().allMatch(Score.Token::isGreedy));
            int[] ids = score.tokens().stream().mapToInt(Score.Token::id).toArray();
            Score again = engine.score(tokenizer.encode("hello"), ids, GenerationOptions.DEFAULTS);
            assertEquals(score.logprob(), again.logprob());
            fails(ErrorCode.ARG, () -> engine.score(new int[0], ids, GenerationOptions.DEFAULTS));
            fails(ErrorCode.ARG, () -> engine.score("hello", "", GenerationOptions.DEFAULTS));
        }
    }

    @Test
    void embeddings() {
        try (QwenEngine engine = openTiny()) {
            int[] ids = {10, 20, 30};
            float[] all = engine.embed(ids, Pooling.NONE, false);
            float[] last = engine.embed(ids, Pooling.LAST, false);
            float[] mean = engine.embed(ids, Pooling.MEAN, false);
            int size = all.length / 3;
            assertTrue(size > 0 && all.length == 3 * size);
            assertArrayEquals(Arrays.copyOfRange(all, 2 * size, 3 * size), last);
            assertEquals(size, mean.length);
            for (int i = 0; i < size; i++) {
                assertEquals((float) (((double) all[i] + all[size + i] + all[2 * size + i]) / 3), mean[i]);
            }
            float[] text = engine.embed("some text", Pooling.MEAN, true);
            double squares = 0;
            for (float x : text) {
                squares += (double) x * x;
            }
            assertEquals(size, text.length);
            assertEquals(1, squares, 1e-6);
            fails(ErrorCode.ARG, () -> engine.embed("", Pooling.LAST, false));
            fails(ErrorCode.UTF8, () -> engine.embed("ab\uD83C", Pooling.LAST, false));
            GenerationOptions bad = GenerationOptions.builder().set("no_such_key", 1).build();
            fails(ErrorCode.OPTION, () -> engine.embed("x", Pooling.LAST, false, bad));
            fails(ErrorCode.OPTION, () -> engine.embed(ids, Pooling.LAST, false, bad));
        }
    }

    private static final String TOOLS = "[{\"type\": \"function\", \"function\": {\"name\": \"weather\", "
            + "\"description\": \"The weather of a place\", \"parameters\": {\"type\": \"object\", "
            + "\"properties\": {\"place\": {\"type\": \"string\", \"maxLength\": 12}}, \"required\": [\"place\"]}}}]";

    @Test
    void toolsAreCalled() {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            GenerationOptions options = greedy().toBuilder().maxTokens(200).tools(Json.parse(TOOLS))
                    .toolChoice(Map.of("type", "function", "function", Map.of("name", "weather"))).build();
            StringBuilder told = new StringBuilder();
            ToolCall call = null;
            try (TokenStream stream = engine.stream(Prompt.chat("How is the weather in Oslo?", options))) {
                for (Event event : stream) {
                    if (event.kind() == EventKind.TOOL_DELTA) {
                        assertEquals("weather", event.toolCall().orElseThrow().name());
                        told.append(event.text());
                    }
                    call = event.kind() == EventKind.TOOL_CALL ? event.toolCall().orElseThrow() : call;
                }
            }
            assertEquals("weather", call.name());
            // The demo model was never taught to write JSON.
            assertEquals(ArgumentsForm.TEXT, call.form().orElseThrow());
            assertFalse(call.arguments().isEmpty());
            assertEquals(call.arguments().strip(), told.toString().strip());
            Reply reply = engine.complete(Prompt.chat("How is the weather in Oslo?", options));
            assertEquals(FinishReason.TOOL_CALLS, reply.finish());
            assertEquals(call.arguments(), reply.toolCall().orElseThrow().arguments());
        }
    }

    @Test
    void formatsAreKept() {
        try (QwenEngine engine = QwenEngine.open(DEMO)) {
            Map<String, Object> format = Map.of("type", "json_schema", "json_schema",
                    Map.of("schema", Json.parse("{\"type\": \"object\", \"properties\": {\"age\": {\"type\": "
                            + "\"integer\", \"maximum\": 99}}, \"required\": [\"age\"], \"additionalProperties\": false}")));
            Reply reply = engine.complete(Prompt.chat("How old is Ada?", greedy().toBuilder().responseFormat(format).build()));
            assertEquals(List.of("age"), List.copyOf(((Map<?, ?>) Json.parse(reply.text())).keySet()));
            fails(ErrorCode.OPTION, () -> engine.complete(Prompt.chat("x",
                    greedy().toBuilder().responseFormat(Map.of("type", "nothing")).build())));
        }
    }

    @Test
    void json() {
        String all = "{\"a\":[1,-2.5,true,false,null,\"\\\"\\\\\\u0000é🌳\"],\"b\":{},\"c\":[]}";
        Object value = Json.parse(all);
        assertEquals(all, Json.write(value));
        assertEquals("[1,2]", Json.write(new int[] {1, 2}));
        assertEquals("\n🌳/", Json.parse(" \"\\n\\ud83c\\udf33\\/\" "));
        assertEquals(1e300, Json.parse("1e300"));
        for (String bad : List.of("", "{", "[1,]", "nul", "\"a", "1 2", "{\"a\" 1}", "\"\\x\"", "\"\\u12", "-", "[".repeat(600))) {
            fails(ErrorCode.ARG, () -> Json.parse(bad));
        }
        fails(ErrorCode.ARG, () -> Json.write(Double.NaN));
        fails(ErrorCode.UTF8, () -> Json.write("\uD83C"));
        Object[] endless = new Object[1];
        endless[0] = endless;
        fails(ErrorCode.ARG, () -> Json.write(Arrays.asList(endless)));
    }
}
