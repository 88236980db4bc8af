// The engine: opening, replies, questions about it, and its end.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.LongFunction;

/**
 * A loaded model. Any thread may use it, several at once. What waits (for a reply, a score, the loading)
 * waits in Java, so virtual threads give their carriers away meanwhile. Close it, which ends all that was
 * made from it; one that is forgotten is closed once it is garbage.
 */
public final class QwenEngine implements AutoCloseable {
    private final Core core;
    private final Cleaner.Cleanable cleanable;

    private QwenEngine(Core core) {
        this.core = core;
        cleanable = Qwen.CLEANER.register(this, core::closeLater);
    }

    /**
     * Loads the checkpoint in a folder (config.json, safetensors, qwen.tiktoken).
     *
     * @param folder the folder
     * @return the engine, which can be used at once
     */
    public static QwenEngine open(Path folder) {
        return open(folder, EngineOptions.DEFAULTS);
    }

    /**
     * Loads a checkpoint with options.
     *
     * @param folder the folder
     * @param options the options
     * @return the engine
     */
    public static QwenEngine open(Path folder, EngineOptions options) {
        return open(folder, options, null, null);
    }

    /**
     * Loads a checkpoint, and tells how that goes. A thread that is interrupted meanwhile gives up.
     *
     * @param folder the folder
     * @param options the options
     * @param logger gets the engine's log lines, as far as it is enabled for their levels, on a thread of
     *     its own; or null: the engine logs nowhere then
     * @param progress is told how far loading is; or null
     * @return the engine
     */
    public static QwenEngine open(Path folder, EngineOptions options, System.Logger logger, LoadProgress progress) {
        Library.load();
        AtomicBoolean givenUp = new AtomicBoolean();
        LoadProgress told = (done, total) -> {
            if (givenUp.get()) {
                throw QwenException.make(ErrorCode.CANCELLED, "cancelled: the thread was interrupted", "{}");
            }
            if (progress != null) {
                progress.onProgress(done, total);
            }
        };
        CompletableFuture<Core> opening = Workers.begin(() -> openNative(folder, options, logger, told));
        try {
            return new QwenEngine(opening.get());
        } catch (InterruptedException e) {
            givenUp.set(true);
            opening.thenAccept(Core::close);
            throw QwenException.interrupted(e);
        } catch (ExecutionException e) {
            throw Workers.rethrown(e.getCause());
        }
    }

    private static Core openNative(Path folder, EngineOptions options, System.Logger logger, LoadProgress progress) {
        byte[] path = Text.bytes("folder", folder.toString());
        byte[] json = options.json();
        // From here on it must be started, whatever happens: its thread frees it.
        LogPump log = LogPump.of(logger);
        if (json == null && log != null) {
            json = new byte[] {'{', '}'}; // the library wants options to hang the log on
        }
        try {
            long engine = Native.engineOpen(path, json, log == null ? 0 : log.log, log == null ? 0 : log.level, progress);
            return new Core(engine, log);
        } finally {
            if (log != null) {
                log.start();
            }
        }
    }

    /**
     * Says what {@link #open} would need, and loads no weights.
     *
     * @param folder the folder
     * @param options the options
     * @return the estimate
     */
    public static MemoryEstimate estimate(Path folder, EngineOptions options) {
        Library.load();
        byte[] path = Text.bytes("folder", folder.toString());
        return MemoryEstimate.of(Fields.parse(Workers.call(() -> Native.engineEstimate(path, options.json()))));
    }

    /**
     * Begins a reply.
     *
     * @param prompt what to reply to
     * @return the reply's events, to be closed
     * @throws QwenException QUEUE_FULL, CONTEXT_FULL, OPTION, and others
     */
    public TokenStream stream(Prompt prompt) {
        Mailbox mailbox = new Mailbox();
        try {
            return new TokenStream(mailbox, new Request(core, prompt, mailbox), this);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Makes a whole reply.
     *
     * @param prompt what to reply to
     * @return the reply
     */
    public Reply complete(Prompt prompt) {
        try (TokenStream stream = stream(prompt)) {
            return stream.reply();
        }
    }

    /**
     * Makes a whole reply in the future. However the future ends before the reply does (cancel, orTimeout,
     * completeExceptionally), that cancels the reply. No thread waits for it.
     *
     * @param prompt what to reply to
     * @return the reply, or a {@link QwenException}; also one that the submission met
     */
    public CompletableFuture<Reply> completeAsync(Prompt prompt) {
        ReplySink sink = new ReplySink(this);
        Request request;
        try {
            request = new Request(core, prompt, sink);
        } catch (QwenException e) {
            return CompletableFuture.failedFuture(e);
        }
        sink.future.whenComplete((reply, error) -> request.close());
        return sink.future;
    }

    /**
     * A reply as a reactive stream: each subscriber gets one of its own, which begins when it subscribes.
     *
     * @param prompt what to reply to
     * @return the publisher; its subscriptions' cancel cancels the reply
     */
    public Flow.Publisher<Event> publisher(Prompt prompt) {
        return subscriber -> EventSubscription.begin(this, core, prompt, subscriber);
    }

    /**
     * Begins a conversation that remembers its turns.
     *
     * @return the session, to be closed
     */
    public Session newSession() {
        return newSession(SessionOptions.DEFAULTS);
    }

    /**
     * Begins a conversation with options.
     *
     * @param options the options, such as the system message
     * @return the session, to be closed
     */
    public Session newSession(SessionOptions options) {
        return new Session(this, core, ask(engine -> Native.sessionNew(engine, options.json())));
    }

    /**
     * The engine's tokenizer, which may outlive it.
     *
     * @return the tokenizer, to be closed
     */
    public Tokenizer tokenizer() {
        return new Tokenizer(ask(Native::tokenizerOfEngine));
    }

    /**
     * How likely the model finds a text behind another, which it gets as it is, without a chat's form.
     *
     * @param context the text before; empty for the beginning of a text
     * @param continuation the text behind it
     * @param options of these, top_logprobs, priority and the time limits count
     * @return the score
     */
    public Score score(String context, String continuation, GenerationOptions options) {
        byte[] before = Text.bytes("context", context);
        byte[] after = Text.bytes("continuation", continuation);
        return score(engine -> Native.score(engine, before, after, options.json()));
    }

    /**
     * The same of token ids; an empty context is an error then.
     *
     * @param context the ids before
     * @param continuation the ids behind them
     * @param options of these, top_logprobs, priority and the time limits count
     * @return the score
     */
    public Score score(int[] context, int[] continuation, GenerationOptions options) {
        return score(engine -> Native.scoreTokens(engine, context, continuation, options.json()));
    }

    private Score score(LongFunction<byte[]> call) {
        // Inside the handle is the thread that is inside C, however long the caller waits for it.
        return Score.of(Fields.parse(Workers.call(() -> ask(call))));
    }

    /**
     * The model's hidden states of a text behind its last norm. They are a chat model's; nothing has trained
     * them as embeddings, so measure before you rely on them. The text goes in as it is, without a chat's form.
     *
     * @param text the text, of one token at least
     * @param pooling of which tokens
     * @param normalize whether each state is scaled to length 1
     * @param options of these, priority, the time limits and, with LAST, cache count
     * @return as many numbers as the model has hidden dimensions; with NONE as many for each token, in order
     */
    public float[] embed(String text, Pooling pooling, boolean normalize, GenerationOptions options) {
        byte[] said = Text.bytes("the text", text);
        return embed(engine -> Native.embed(engine, said, pooling.number(), normalize, options.json()));
    }

    /**
     * The same without options.
     *
     * @param text the text
     * @param pooling of which tokens
     * @param normalize whether each state is scaled to length 1
     * @return the states
     */
    public float[] embed(String text, Pooling pooling, boolean normalize) {
        return embed(text, pooling, normalize, GenerationOptions.DEFAULTS);
    }

    /**
     * The same of token ids.
     *
     * @param ids the ids, one at least
     * @param pooling of which tokens
     * @param normalize whether each state is scaled to length 1
     * @param options of these, priority, the time limits and, with LAST, cache count
     * @return the states
     */
    public float[] embed(int[] ids, Pooling pooling, boolean normalize, GenerationOptions options) {
        return embed(engine -> Native.embedTokens(engine, ids, pooling.number(), normalize, options.json()));
    }

    /**
     * The same of token ids, without options.
     *
     * @param ids the ids
     * @param pooling of which tokens
     * @param normalize whether each state is scaled to length 1
     * @return the states
     */
    public float[] embed(int[] ids, Pooling pooling, boolean normalize) {
        return embed(ids, pooling, normalize, GenerationOptions.DEFAULTS);
    }

    private float[] embed(LongFunction<float[]> call) {
        return Workers.call(() -> ask(call));
    }

    /**
     * Describes the engine.
     *
     * @return what it says of itself
     */
    public EngineInfo info() {
        return EngineInfo.of(Fields.parse(ask(Native::engineInfo)));
    }

    /**
     * Reads the engine's counters, gauges and histograms; never waits for the model.
     *
     * @return the metrics as they are now
     */
    public Metrics metrics() {
        return new Metrics(Fields.parse(ask(Native::engineMetrics)).all());
    }

    /**
     * The same numbers as text in Prometheus's exposition format (version 0.0.4), for a scrape endpoint.
     *
     * @param model the label "model" of every sample; empty for none
     * @return the text
     */
    public String prometheus(String model) {
        byte[] name = Text.bytes("model", model);
        return Text.of(ask(engine -> Native.engineMetricsPrometheus(engine, name)));
    }

    /**
     * The values that generation options have where they are not set. They come from the checkpoint; there
     * is no seed among them, for an unset seed is random.
     *
     * @return the options
     */
    public GenerationOptions defaults() {
        GenerationOptions.Builder builder = GenerationOptions.builder();
        Fields.parse(ask(Native::engineGeneration)).all().forEach(builder::set);
        return builder.build();
    }

    /**
     * Returns while the engine can serve; never waits for the model.
     *
     * @throws QwenException why it cannot: CLOSED, ENGINE_FAILED, FORKED
     */
    public void checkHealth() {
        ask(engine -> {
            Native.engineHealth(engine);
            return null;
        });
    }

    /**
     * Refuses new requests and waits until those accepted are finished. Close the engine in any case.
     *
     * @param timeout how long to wait; the draining goes on after it
     * @return whether it has ended in that time
     */
    public boolean shutdown(Duration timeout) {
        long wait = Math.max(0, timeout.toMillis());
        return Workers.call(() -> ask(engine -> Native.engineShutdown(engine, Constants.SHUTDOWN_DRAIN, wait)));
    }

    /**
     * Ends the engine within one step: its replies end with a {@link QwenException.Cancelled}, its sessions
     * and streams are closed, and its memory is given back. Any thread, also while others use it. Again, it
     * does nothing.
     */
    @Override
    public void close() {
        core.close();
        cleanable.clean();
    }

    private <T> T ask(LongFunction<T> call) {
        try {
            return core.handle.ask(call);
        } finally {
            Reference.reachabilityFence(this);
        }
    }
}
