// Waits in every way on virtual threads with one carrier among them: VirtualThreads TINY-MODEL SLOW-MODEL
//
// All streams must be in their middle at once, so a thread that kept the carrier while it waits would be
// the end of it. The JDK's flight recorder counts the pinned threads as well.
import io.github.libqwen.EngineOptions;
import io.github.libqwen.Event;
import io.github.libqwen.GenerationOptions;
import io.github.libqwen.Prompt;
import io.github.libqwen.QwenEngine;
import io.github.libqwen.Session;
import io.github.libqwen.TokenStream;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import jdk.jfr.consumer.RecordingStream;

public class VirtualThreads {
    static final GenerationOptions LONG = GenerationOptions.builder().maxTokens(100).ignoreEos(true).build();

    static void read(TokenStream stream, CountDownLatch all) throws InterruptedException {
        int tokens = 0;
        for (Event event : stream) {
            tokens += event.numTokens();
            if (event.numTokens() > 0) {
                all.countDown();
                if (!all.await(60, TimeUnit.SECONDS)) {
                    throw new IllegalStateException("not all have begun");
                }
            }
        }
        if (tokens != 100) {
            throw new IllegalStateException(tokens + " tokens");
        }
    }

    static Void streams(QwenEngine engine, CountDownLatch all) throws InterruptedException {
        try (TokenStream stream = engine.stream(Prompt.chat("x", LONG))) {
            read(stream, all);
        }
        return null;
    }

    static Void talks(QwenEngine engine, CountDownLatch all) throws InterruptedException {
        try (Session session = engine.newSession(); TokenStream stream = session.stream("x", LONG)) {
            read(stream, all);
        }
        return null;
    }

    static void work(Path model) throws Exception {
        EngineOptions options = EngineOptions.builder().numThreads(1).maxBatchSequences(256).kvCacheTokens(65536)
                .maxContextTokens(2048).build();
        CountDownLatch all = new CountDownLatch(120);
        List<Future<Void>> ends = new ArrayList<>();
        try (QwenEngine engine = QwenEngine.open(model, options);
                ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
            for (int i = 0; i < 100; i++) {
                ends.add(threads.submit(() -> streams(engine, all)));
                ends.add(threads.submit(() -> {
                    engine.score("a", "b", GenerationOptions.DEFAULTS);
                    return null;
                }));
            }
            for (int i = 0; i < 20; i++) {
                ends.add(threads.submit(() -> talks(engine, all)));
            }
            for (Future<Void> end : ends) {
                end.get();
            }
            threads.submit(() -> engine.shutdown(Duration.ofSeconds(10))).get();
            threads.submit(engine::close).get();
        }
    }

    /** A score waits behind a long reply, which only another virtual thread ends. */
    static void stop(Path model) throws Exception {
        EngineOptions narrow = EngineOptions.builder().maxBatchSequences(1).build();
        GenerationOptions endless = GenerationOptions.builder().maxTokens(1500).ignoreEos(true).build();
        try (QwenEngine engine = QwenEngine.open(model, narrow);
                TokenStream stream = engine.stream(Prompt.chat("x", endless));
                ExecutorService threads = Executors.newVirtualThreadPerTaskExecutor()) {
            stream.iterator().next();
            Future<?> score = threads.submit(() -> engine.score("hello", " world", GenerationOptions.DEFAULTS));
            threads.submit(stream::stop).get();
            System.out.println("stopped: " + stream.reply().finish());
            score.get();
        }
    }

    public static void main(String[] args) throws Exception {
        AtomicInteger pinned = new AtomicInteger();
        try (RecordingStream recording = new RecordingStream()) {
            recording.enable("jdk.VirtualThreadPinned").withThreshold(Duration.ofMillis(1)).withStackTrace();
            recording.onEvent("jdk.VirtualThreadPinned", event -> {
                pinned.incrementAndGet();
                System.out.println(event);
            });
            recording.startAsync();
            // Also the opening: on a virtual thread.
            Thread opener = Thread.ofVirtual().start(() -> {
                try {
                    work(Path.of(args[0]));
                    stop(Path.of(args[1]));
                } catch (Exception e) {
                    e.printStackTrace();
                    System.exit(1);
                }
            });
            opener.join();
            recording.stop();
        }
        System.out.println("100 streams, 20 sessions, 100 scores on one carrier");
        System.out.println(pinned + " pinned");
    }
}
