// Sessions: conversations that remember their turns.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/**
 * A conversation. It serves one call at a time: a second gets a {@link QwenException} with the code BUSY.
 * Any thread may stop, cancel and close it, also during a call. Each reply that is being made holds one
 * thread of this package, not the caller's.
 */
public final class Session implements AutoCloseable {
    private final QwenEngine engine;
    private final Core core;
    private final Handle handle;
    /** The call that makes a reply, if one does. */
    private final AtomicReference<SessionCall> replying = new AtomicReference<>();
    private final Cleaner.Cleanable cleanable;

    Session(QwenEngine engine, Core core, long session) {
        this.engine = engine;
        this.core = core;
        handle = new Handle("session", session, Native::sessionFree);
        core.adopt(handle);
        cleanable = Qwen.CLEANER.register(this, closer(core, handle));
    }

    private static Runnable closer(Core core, Handle handle) {
        return () -> core.dismiss(handle);
    }

    /**
     * Says something and streams the reply. The turn is remembered when the reply is complete, or stopped;
     * it is forgotten when the stream is closed before its end, cancelled, or fails.
     *
     * @param text the user's message
     * @param options how to reply
     * @return the reply's events, to be closed
     */
    public TokenStream stream(String text, GenerationOptions options) {
        return begin(Text.bytes("the message", text), false, options);
    }

    /**
     * Says something and waits for the whole reply.
     *
     * @param text the user's message
     * @param options how to reply
     * @return the reply
     */
    public Reply send(String text, GenerationOptions options) {
        return whole(stream(text, options));
    }

    /**
     * Says something and waits for the whole reply, as the checkpoint says.
     *
     * @param text the user's message
     * @return the reply
     */
    public Reply send(String text) {
        return send(text, GenerationOptions.DEFAULTS);
    }

    /**
     * Gives the result of the tool that the last reply calls, and streams the reply to it. If that fails,
     * the call still waits for its result.
     *
     * @param result the result
     * @param options should offer the same tools again
     * @return the reply's events, to be closed
     */
    public TokenStream streamToolResult(String result, GenerationOptions options) {
        return begin(Text.bytes("the result", result), true, options);
    }

    /**
     * Gives a tool's result and waits for the whole reply.
     *
     * @param result the result
     * @param options should offer the same tools again
     * @return the reply
     */
    public Reply sendToolResult(String result, GenerationOptions options) {
        return whole(streamToolResult(result, options));
    }

    /**
     * Forgets the last reply and makes it anew, or makes the one that is missing behind a user's message
     * that was appended. If that fails, the conversation is as it was.
     *
     * @param options how to reply
     * @return the reply's events, to be closed
     */
    public TokenStream streamAgain(GenerationOptions options) {
        return begin(null, false, options);
    }

    /**
     * {@link #streamAgain} for the whole reply.
     *
     * @param options how to reply
     * @return the reply
     */
    public Reply regenerate(GenerationOptions options) {
        return whole(streamAgain(options));
    }

    private static Reply whole(TokenStream stream) {
        try (stream) {
            return stream.reply();
        }
    }

    private TokenStream begin(byte[] text, boolean isResult, GenerationOptions options) {
        if (handle.isClosed()) {
            throw QwenException.closed("session");
        }
        byte[] json = options.json();
        Mailbox mailbox = new Mailbox();
        SessionCall call = new SessionCall(mailbox);
        if (!replying.compareAndSet(null, call)) {
            throw QwenException.make(ErrorCode.BUSY, "another call makes a reply of this session", "{}");
        }
        try {
            Workers.POOL.execute(() -> call.run(handle, text, isResult, json, () -> replying.set(null)));
        } catch (OutOfMemoryError noThread) {
            replying.set(null);
            throw noThread;
        }
        return new TokenStream(mailbox, call, this);
    }

    /** Ends the reply that is being made, if one is, within one step, and keeps it. */
    public void stop() {
        cancel(Constants.STOP);
    }

    /** Ends the reply that is being made, if one is, within one step, and forgets it. */
    public void cancel() {
        cancel(Constants.CANCEL);
    }

    private void cancel(int how) {
        if (handle.isClosed()) {
            throw QwenException.closed("session");
        }
        SessionCall call = replying.get();
        if (call != null) {
            call.cancel(how);
        }
    }

    /**
     * The last reply.
     *
     * @return its text
     * @throws QwenException STATE where there is none
     */
    public String reply() {
        return Text.of(ask(Native::sessionReply));
    }

    /**
     * All messages, the system message first.
     *
     * @return a list of one's own
     */
    public List<Message> messages() {
        return Message.ofJson(ask(Native::sessionMessages));
    }

    /**
     * Appends messages as they are, without the model: user and assistant in alternation, going on from the
     * last there is. A system message at their beginning replaces the session's. All or none.
     *
     * @param messages the messages
     */
    public void append(Message... messages) {
        byte[] json = Message.toJson(List.of(messages));
        run(session -> Native.sessionAppend(session, json));
    }

    /**
     * Keeps the first turns (a turn is a user's message and all up to its reply). The system message stays.
     *
     * @param numTurns their number; 0 forgets all, and less is the code ARG
     */
    public void truncate(long numTurns) {
        if (numTurns < 0) {
            throw QwenException.make(ErrorCode.ARG, "a session has no " + numTurns + " turns", "{}");
        }
        run(session -> Native.sessionTruncate(session, numTurns));
    }

    /**
     * Replaces the system message.
     *
     * @param text the message; null is the chat format's own
     */
    public void setSystem(String text) {
        byte[] bytes = text == null ? null : Text.bytes("the system message", text);
        run(session -> Native.sessionSetSystem(session, bytes));
    }

    /**
     * Replaces the text of one message. Messages after it stay as they are.
     *
     * @param index counts as {@link #messages} lists them, from 0, the system message
     * @param text the text
     */
    public void edit(long index, String text) {
        byte[] bytes = Text.bytes("the message", text);
        // A negative index is one far too large.
        run(session -> Native.sessionEdit(session, index, bytes));
    }

    /**
     * Makes a second conversation that begins with all messages of this one; from here on each goes its own
     * way. What both begin with is computed once, as long as the prefix cache has it.
     *
     * @return the session, to be closed
     */
    public Session fork() {
        return new Session(engine, core, ask(Native::sessionFork));
    }

    /**
     * The whole state of the session, to be kept wherever you like.
     *
     * @return bytes that {@link #load} takes
     */
    public byte[] save() {
        return ask(Native::sessionSave);
    }

    /**
     * Replaces all messages by those that were saved. If that fails, the session is as it was.
     *
     * @param saved what {@link #save} gave
     * @throws QwenException CORRUPT for other bytes, STATE_MISMATCH for those of another model
     */
    public void load(byte[] saved) {
        run(session -> Native.sessionLoad(session, saved));
    }

    /** Cancels the reply that is being made, if one is, and lets the session go. Again, it does nothing. */
    @Override
    public void close() {
        SessionCall call = replying.get();
        if (call != null) {
            call.forget();
        }
        cleanable.clean();
        Reference.reachabilityFence(engine);
    }

    private <T> T ask(LongFunction<T> call) {
        try {
            return handle.ask(call);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    private void run(LongConsumer call) {
        try {
            handle.run(call);
        } finally {
            Reference.reachabilityFence(this);
        }
    }
}
