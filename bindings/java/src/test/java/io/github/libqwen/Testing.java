// What the tests share: the models they open, and what is asked of them.

package io.github.libqwen;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.fail;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.function.Executable;

final class Testing {
    static final Path ROOT = Path.of(System.getProperty("qwen.root")).toAbsolutePath().normalize();
    /** Random weights: replies are random bytes, many of them no UTF-8. */
    static final Path TINY = ROOT.resolve("tests/data/tiny/plain-bf16");
    /** Small, real, and slow enough to be cancelled in the middle. */
    static final Path DEMO = ROOT.resolve("demo/chat-model");
    /** The real vocabulary of Qwen-1. */
    static final Path VOCABULARY = ROOT.resolve("demo/vocabulary");

    private Testing() {}

    static EngineOptions.Builder small() {
        return EngineOptions.builder().numThreads(1).kvCacheTokens(65536).maxContextTokens(2048);
    }

    static QwenEngine openTiny() {
        return QwenEngine.open(TINY, small().build());
    }

    static GenerationOptions exactly(int tokens) {
        return GenerationOptions.builder().maxTokens(tokens).ignoreEos(true).seed(7).build();
    }

    static GenerationOptions greedy() {
        return GenerationOptions.builder().temperature(0).repetitionPenalty(1).maxTokens(32).build();
    }

    /** A question with a reply of exactly so many tokens. */
    static Prompt ask(String text, int tokens) {
        return Prompt.chat(text, exactly(tokens));
    }

    static QwenException fails(ErrorCode code, Executable call) {
        QwenException why = assertThrows(QwenException.class, call);
        assertEquals(code, why.code(), why.toString());
        return why;
    }

    static void eventually(String what, BooleanSupplier holds) {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        while (!holds.getAsBoolean()) {
            if (System.nanoTime() > end) {
                fail("never: " + what);
            }
            pause(1);
        }
    }

    static void pause(long ms) {
        try {
            Thread.sleep(ms);
        } catch (InterruptedException e) {
            throw new AssertionError(e);
        }
    }

    /** Waits until the engine has nothing to do. */
    static void idle(QwenEngine engine) {
        eventually("the engine is idle", () -> {
            Metrics now = engine.metrics();
            return now.requestsRunning() == 0 && now.requestsWaiting() == 0 && now.pagesUsed() == 0;
        });
    }

    /** Collects garbage until no more than so many C objects are held, or patience ends. */
    static long settledHandles(long wanted) {
        for (int i = 0; i < 300 && Handle.LIVE.get() > wanted; i++) {
            System.gc();
            pause(10);
        }
        return Handle.LIVE.get();
    }

    static String read(Path path) {
        try {
            return Files.readString(path);
        } catch (IOException e) {
            throw new AssertionError(e);
        }
    }

    /** What a program printed, and how it ended. */
    record Ran(int status, String output) {}

    /** Runs a JVM with this package's classes; its two outputs come together. */
    static Ran java(List<String> arguments) {
        return java(System.getProperty("java.home"), arguments);
    }

    static Ran java(String home, List<String> arguments) {
        List<String> command = new ArrayList<>(List.of(home + "/bin/java", "-Xshare:auto"));
        command.addAll(arguments);
        return run(command);
    }

    /** Its output goes to a file, so that one that says nothing and never ends is met by the time limit. */
    static Ran run(List<String> command) {
        try {
            Path output = Files.createTempFile("qwen-test-", ".txt");
            try {
                return run(command, output);
            } finally {
                Files.delete(output);
            }
        } catch (IOException | InterruptedException e) {
            throw new AssertionError(e);
        }
    }

    private static Ran run(List<String> command, Path output) throws IOException, InterruptedException {
        ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(output.toFile());
        // A JVM says on its output that it has picked these up.
        builder.environment().keySet().removeAll(List.of("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"));
        Process process = builder.start();
        try {
            process.getOutputStream().close();
            if (!process.waitFor(120, TimeUnit.SECONDS)) {
                fail("it never ends: " + command + "\n" + said(output));
            }
            return new Ran(process.exitValue(), said(output));
        } finally {
            process.destroyForcibly();
        }
    }

    private static String said(Path output) throws IOException {
        return new String(Files.readAllBytes(output), StandardCharsets.UTF_8);
    }

    /** This package's classes, without its tests. */
    static String classes() {
        try {
            return Path.of(QwenEngine.class.getProtectionDomain().getCodeSource().getLocation().toURI()).toString();
        } catch (java.net.URISyntaxException e) {
            throw new AssertionError(e);
        }
    }
}
