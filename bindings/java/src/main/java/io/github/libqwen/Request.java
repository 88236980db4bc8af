// Requests: one reply to one prompt, whose events go to a sink.

package io.github.libqwen;

/** A request of the library. Any thread; does not wait. */
final class Request implements TokenStream.Source {
    private final Core core;
    private final Handle handle;
    private final EventSink sink;
    private final long tag;

    /** Makes the request and hands it to the engine. */
    Request(Core core, Prompt prompt, EventSink sink) {
        this.core = core;
        this.sink = sink;
        handle = new Handle("request", core.handle.ask(engine -> make(engine, prompt)), Native::requestFree);
        core.adopt(handle);
        try {
            tag = handle.ask(request -> core.pump.submit(request, sink));
        } catch (Throwable e) {
            core.dismiss(handle);
            throw e;
        }
    }

    private static long make(long engine, Prompt prompt) {
        byte[] options = prompt.options().json();
        if (prompt instanceof Prompt.Chat chat) {
            return Native.requestNewChat(engine, Message.toJson(chat.messages()), options);
        }
        return Native.requestNewTokens(engine, ((Prompt.Tokens) prompt).ids(), options);
    }

    @Override
    public void cancel(int how) {
        handle.run(request -> Native.requestCancel(request, how));
    }

    /** Cancels it if it still runs, and lets it go. Again, it does nothing. */
    @Override
    public void close() {
        core.dismiss(handle);
        core.pump.forget(tag);
        sink.end(QwenException.closed("request"));
    }

    @Override
    public void forget() {
        close();
    }
}
