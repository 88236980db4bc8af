// The engine: opening it, and what it says of itself.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.ResourceBundle;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;

class EngineTest {
    @Test
    void errorsAreTyped() {
        QwenException missing = fails(ErrorCode.NOT_FOUND, () -> QwenEngine.open(Path.of("/no/such/folder")));
        assertInstanceOf(QwenException.BadFile.class, missing);
        assertTrue(String.valueOf(missing.detail().get("path")).startsWith("/no/such/folder"), missing.detailJson());
        fails(ErrorCode.NOT_FOUND, () -> Tokenizer.open(Path.of("/no/such/folder")));
        Map<String, Object> refused = Map.of("no_such_key", 1, "split", 1.5, "num_threads", -1);
        refused.forEach((key, value) -> {
            EngineOptions options = EngineOptions.builder().set(key, value).build();
            QwenException why = fails(ErrorCode.OPTION, () -> QwenEngine.open(TINY, options));
            assertEquals(key, why.detail().get("key"));
        });
        fails(ErrorCode.ARG, () -> QwenEngine.open(TINY, EngineOptions.builder().set("split", new Object()).build()));
        // A code of a later library is an error all the same.
        QwenException later = QwenException.of(12345, new byte[] {'x'}, new byte[] {'{', '}'});
        assertEquals(ErrorCode.UNKNOWN, later.code());
        assertEquals(12345, later.status());
        assertEquals("QWEN_E_UNKNOWN", Qwen.statusName(12345));
        assertEquals("QWEN_E_UTF8", Qwen.statusName(ErrorCode.UTF8.number()));
    }

    @Test
    void whatAnEngineSaysOfItself() {
        EngineOptions options = small().kvCacheTokens(256).build();
        MemoryEstimate estimate = QwenEngine.estimate(TINY, options);
        try (QwenEngine engine = QwenEngine.open(TINY, options)) {
            EngineInfo info = engine.info();
            assertTrue(estimate.fits());
            assertEquals(info.weightBytes(), estimate.weightBytes());
            assertEquals(256, estimate.kvCacheTokens());
            assertEquals(293, info.vocabSize());
            assertEquals(256, info.maxContextTokens());
            assertFalse(info.backend().isEmpty());
            engine.complete(ask("x", 10));
            idle(engine);
            assertEquals(10, engine.metrics().generatedTokens());
            assertEquals(1, engine.metrics().requestsFinished());
            Map<String, Object> defaults = engine.defaults().asMap();
            assertEquals(512L, defaults.get("max_tokens"));
            assertEquals(0.8, defaults.get("top_p"));
            assertFalse(defaults.containsKey("seed"));
            Map<String, Object> set = new java.util.LinkedHashMap<>(defaults);
            set.values().removeIf(java.util.Objects::isNull);
            assertEquals(set, Json.parse(engine.defaults().canonicalJson()));
            engine.checkHealth();
        }
    }

    @Test
    void metricsAreToldInFull() {
        try (QwenEngine engine = openTiny()) {
            engine.complete(ask("x", 10));
            idle(engine);
            Map<String, Histogram> histograms = engine.metrics().histograms();
            Histogram generated = histograms.get("request_generated_tokens");
            assertEquals(1, generated.count());
            assertEquals(10, generated.sum());
            // In the first bucket whose bound is no less.
            int index = 0;
            while (generated.bounds().get(index) < 10) {
                index++;
            }
            assertEquals(generated.bounds().size() + 1, generated.counts().size());
            assertEquals(1, generated.counts().get(index));
            assertEquals(9, histograms.get("time_between_tokens_seconds").count());
            String text = engine.prometheus("tiny \"é\"");
            assertTrue(text.contains("qwen_generated_tokens_total{model=\"tiny \\\"é\\\"\"} 10\n"), text);
            assertTrue(engine.prometheus("").contains("\nqwen_generated_tokens_total 10\n"), text);
            fails(ErrorCode.UTF8, () -> engine.prometheus("ab\uD83C"));
        }
    }

    @Test
    void optionsAreTheLibrarys() {
        GenerationOptions options = GenerationOptions.builder().maxTokens(3).temperature(0.5).stop("<&>", "é 🌳")
                .stopTokenIds(1).ignoreEos(true).set("top_k", 4).minP(0.25).build();
        Object said = Json.parse(options.canonicalJson());
        Object wanted = Json.parse("{\"max_tokens\":3,\"temperature\":0.5,\"stop\":[\"<&>\",\"é 🌳\"],"
                + "\"stop_token_ids\":[1],\"ignore_eos\":true,\"top_k\":4,\"min_p\":0.25}");
        assertEquals(wanted, said);
        assertEquals(said, Json.parse(options.toBuilder().build().canonicalJson()));
        fails(ErrorCode.OPTION, () -> options.toBuilder().temperature(-1).build().canonicalJson());
        Options.Description first = Options.describe("generation").get(0);
        assertEquals("max_tokens", first.key());
        assertEquals(1L, first.all().get("minimum"));
        fails(ErrorCode.ARG, () -> Options.describe("nothing"));
    }

    @Test
    void progressIsToldAndMayGiveUp() {
        AtomicLong done = new AtomicLong();
        AtomicLong total = new AtomicLong(-1);
        try (QwenEngine engine = QwenEngine.open(DEMO, EngineOptions.DEFAULTS, null, (ready, all) -> {
            done.set(ready);
            total.set(all);
        })) {
            assertEquals(total.get(), done.get());
            assertTrue(done.get() > 0);
            engine.checkHealth();
        }
        long held = settledHandles(0);
        IllegalStateException mine = new IllegalStateException("mine");
        LoadProgress broken = (ready, all) -> {
            throw mine;
        };
        assertSame(mine, assertThrows(IllegalStateException.class,
                () -> QwenEngine.open(DEMO, EngineOptions.DEFAULTS, null, broken)));
        Thread me = Thread.currentThread();
        QwenException why = fails(ErrorCode.CANCELLED,
                () -> QwenEngine.open(DEMO, EngineOptions.DEFAULTS, null, (ready, all) -> me.interrupt()));
        assertInstanceOf(InterruptedException.class, why.getCause());
        assertTrue(Thread.interrupted());
        eventually("the engine that nobody wants is gone", () -> Handle.LIVE.get() <= held);
    }

    /** A logger that keeps its lines, and may have a bug. */
    private static final class Lines implements System.Logger {
        final List<String> lines = Collections.synchronizedList(new ArrayList<>());
        final Level least;
        final boolean broken;
        volatile boolean asked;

        Lines(Level least, boolean broken) {
            this.least = least;
            this.broken = broken;
        }

        @Override
        public String getName() {
            return "lines";
        }

        @Override
        public boolean isLoggable(Level level) {
            asked = true;
            return level.getSeverity() >= least.getSeverity();
        }

        @Override
        public void log(Level level, ResourceBundle bundle, String message, Throwable thrown) {
            log(level, bundle, message);
        }

        @Override
        public void log(Level level, ResourceBundle bundle, String format, Object... params) {
            lines.add(level + " " + format);
            if (broken) {
                throw new IllegalStateException("a bug");
            }
        }
    }

    @Test
    void linesGoToTheLogger() {
        for (System.Logger.Level least : List.of(System.Logger.Level.INFO, System.Logger.Level.DEBUG)) {
            Lines logger = new Lines(least, false);
            try (QwenEngine engine = QwenEngine.open(TINY, small().build(), logger, null)) {
                engine.complete(ask("x", 1));
            }
            assertTrue(logger.lines.stream().anyMatch(line -> line.matches("INFO [a-z_:]+: .*")), logger.lines::toString);
            boolean debug = logger.lines.stream().anyMatch(line -> line.startsWith("DEBUG"));
            assertEquals(least == System.Logger.Level.DEBUG, debug, logger.lines::toString);
        }
        Lines warnings = new Lines(System.Logger.Level.WARNING, false);
        LogPump pump = LogPump.of(warnings);
        assertEquals(Constants.LOG_WARN, pump.level);
        Native.logFree(pump.log);
        assertNull(LogPump.of(new Lines(System.Logger.Level.OFF, false)));
    }

    private static boolean someLogIsRead() {
        return Thread.getAllStackTraces().keySet().stream().anyMatch(thread -> thread.getName().equals("libqwen-log"));
    }

    /** The thread frees the log as it ends. */
    @Test
    void anOpenThatFailsLeavesNoLog() {
        Lines logger = new Lines(System.Logger.Level.DEBUG, false);
        EngineOptions refused = EngineOptions.builder().set("no_such_key", 1).build();
        fails(ErrorCode.OPTION, () -> QwenEngine.open(TINY, refused, logger, null));
        assertTrue(logger.asked);
        fails(ErrorCode.NOT_FOUND, () -> QwenEngine.open(Path.of("/no/such/folder"), small().build(), logger, null));
        eventually("the logs' threads end", () -> !someLogIsRead());
        Lines unasked = new Lines(System.Logger.Level.DEBUG, false);
        EngineOptions unwritable = EngineOptions.builder().set("split", new Object()).build();
        fails(ErrorCode.ARG, () -> QwenEngine.open(TINY, unwritable, unasked, null));
        assertFalse(unasked.asked, "a log was made that nobody frees");
    }

    @Test
    void aBrokenLoggerIsToldToItsThread() {
        AtomicReference<Throwable> told = new AtomicReference<>();
        Thread.UncaughtExceptionHandler before = Thread.getDefaultUncaughtExceptionHandler();
        Thread.setDefaultUncaughtExceptionHandler((thread, why) -> told.set(why));
        try (QwenEngine engine = QwenEngine.open(TINY, small().build(), new Lines(System.Logger.Level.DEBUG, true), null)) {
            eventually("the bug is told", () -> told.get() != null);
            assertEquals("a bug", told.get().getMessage());
            assertEquals(5, engine.complete(ask("x", 5)).tokens().length);
        } finally {
            Thread.setDefaultUncaughtExceptionHandler(before);
        }
    }

    @Test
    void shutdownDrains() {
        try (QwenEngine engine = openTiny(); TokenStream stream = engine.stream(ask("x", 500))) {
            assertTrue(engine.shutdown(Duration.ofSeconds(20)));
            assertEquals(500, stream.reply().tokens().length);
            fails(ErrorCode.CLOSED, engine::checkHealth);
            fails(ErrorCode.CLOSED, () -> engine.complete(ask("x", 1)));
        }
        try (QwenEngine slow = QwenEngine.open(DEMO); TokenStream stream = slow.stream(ask("Tell me a long story.", 1500))) {
            assertFalse(slow.shutdown(Duration.ofMillis(100)));
            assertTrue(stream.iterator().hasNext());
        }
    }
}
