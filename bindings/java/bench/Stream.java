// What a streamed token costs in Java: the twin of benches/stream.c, with the same arguments and the same
// output. One thread reads each stream: Stream MODEL STREAMS TOKENS
import io.github.libqwen.EngineOptions;
import io.github.libqwen.Event;
import io.github.libqwen.GenerationOptions;
import io.github.libqwen.Prompt;
import io.github.libqwen.QwenEngine;
import io.github.libqwen.TokenStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public final class Stream {
    private static final long WARM_UP_NS = 4_000_000_000L;

    private Stream() {}

    /**
     * The CPU time in nanoseconds of all threads but the library's own, and the JVM's compilers: these work on
     * this program for as long as it is young, however many tokens there are.
     */
    private static long cpu() throws IOException {
        long total = 0;
        try (var tasks = Files.newDirectoryStream(Path.of("/proc/self/task"))) {
            for (Path task : tasks) {
                try {
                    String name = Files.readString(task.resolve("comm"));
                    if (!name.startsWith("qwen-") && !name.contains("Compiler")) {
                        total += Long.parseLong(Files.readString(task.resolve("schedstat")).split(" ")[0]);
                    }
                } catch (NoSuchFileException e) {
                    // It has ended meanwhile.
                }
            }
        }
        return total;
    }

    /** Reads a stream to its end and counts its tokens. */
    private static long follow(QwenEngine engine, Prompt prompt) {
        long tokens = 0;
        try (TokenStream stream = engine.stream(prompt)) {
            for (Event event : stream) {
                tokens += event.numTokens();
            }
        }
        return tokens;
    }

    /** Follows so many streams at once. */
    private static long all(ExecutorService threads, QwenEngine engine, int streams, Prompt prompt)
            throws InterruptedException, ExecutionException {
        List<Future<Long>> counts = new ArrayList<>();
        for (int i = 0; i < streams; i++) {
            counts.add(threads.submit(() -> follow(engine, prompt)));
        }
        long tokens = 0;
        for (Future<Long> count : counts) {
            tokens += count.get();
        }
        return tokens;
    }

    public static void main(String[] args) throws Exception {
        int streams = Integer.parseInt(args[1]);
        GenerationOptions options = GenerationOptions.builder().maxTokens(Long.parseLong(args[2])).ignoreEos(true)
                .temperature(0).build();
        Prompt prompt = Prompt.chat("hello", options);
        EngineOptions small = EngineOptions.builder().numThreads(1).kvCacheTokens(262144).maxContextTokens(4096)
                .maxBatchSequences(1024).build();
        ExecutorService threads = Executors.newFixedThreadPool(streams);
        try (QwenEngine engine = QwenEngine.open(Path.of(args[0]), small)) {
            // For what only the first seconds cost: the compiler wants to see the code a while.
            long warm = System.nanoTime() + WARM_UP_NS;
            do {
                all(threads, engine, streams, prompt);
                cpu();
            } while (System.nanoTime() < warm);
            long wall = System.nanoTime();
            long used = cpu();
            long tokens = all(threads, engine, streams, prompt);
            System.out.println((System.nanoTime() - wall) / tokens + " " + (cpu() - used) / tokens + " " + tokens);
        }
        threads.shutdown();
    }
}
