// The functions of the JNI glue (src/main/c): thin, one for each of qwen.h.

package io.github.libqwen;

/**
 * Texts are UTF-8, options are JSON, handles are pointers of C as numbers. A call that fails throws a
 * {@link QwenException}. Whoever calls holds the handles it names (see {@link Handle}), and has called
 * {@link Library#load}.
 */
final class Native {
    private Native() {}

    static native byte[] version();

    static native int abiVersion();

    static native void checkAbi(int version);

    static native byte[] statusName(int status);

    static native byte[] buildInfo();

    static native byte[] describeOptions(byte[] kind);

    static native byte[] canonicalOptions(byte[] kind, byte[] json);

    static native long engineOpen(byte[] folder, byte[] options, long log, int level, LoadProgress progress);

    static native byte[] engineEstimate(byte[] folder, byte[] options);

    static native byte[] engineInfo(long engine);

    static native byte[] engineMetrics(long engine);

    static native byte[] engineMetricsPrometheus(long engine, byte[] model);

    static native byte[] engineGeneration(long engine);

    static native void engineHealth(long engine);

    static native boolean engineShutdown(long engine, int how, long timeoutMs);

    static native void engineFree(long engine);

    static native long requestNewChat(long engine, byte[] messages, byte[] options);

    static native long requestNewTokens(long engine, int[] ids, byte[] options);

    static native void requestSubmit(long request, long queue, long tag);

    static native void requestCancel(long request, int how);

    static native void requestFree(long request);

    static native byte[] score(long engine, byte[] context, byte[] continuation, byte[] options);

    static native byte[] scoreTokens(long engine, int[] context, int[] continuation, byte[] options);

    static native float[] embed(long engine, byte[] text, int pooling, boolean normalize, byte[] options);

    static native float[] embedTokens(long engine, int[] ids, int pooling, boolean normalize, byte[] options);

    static native long queueNew();

    static native byte[] queueNext(long queue, int max, long timeoutMs);

    static native void queueFree(long queue);

    static native long sessionNew(long engine, byte[] options);

    static native void sessionReplyTo(long session, byte[] text, boolean isResult, byte[] options, EventSink sink);

    static native void sessionCancel(long session, int how);

    static native byte[] sessionReply(long session);

    static native byte[] sessionMessages(long session);

    static native byte[] sessionSave(long session);

    static native void sessionLoad(long session, byte[] saved);

    static native void sessionAppend(long session, byte[] messages);

    static native void sessionTruncate(long session, long numTurns);

    static native void sessionSetSystem(long session, byte[] text);

    static native void sessionEdit(long session, long index, byte[] text);

    static native long sessionFork(long session);

    static native void sessionFree(long session);

    static native long tokenizerOpen(byte[] folder);

    static native long tokenizerOfEngine(long engine);

    static native int[] tokenizerEncode(long tokenizer, byte[] text, int flags);

    static native byte[] tokenizerDecode(long tokenizer, int[] ids, int flags);

    static native byte[] tokenizerTokenBytes(long tokenizer, int id);

    static native int[] tokenizerRenderChat(long tokenizer, byte[] messages, long window);

    static native byte[] tokenizerInfo(long tokenizer);

    static native void tokenizerFree(long tokenizer);

    static native long detokNew(long tokenizer);

    static native byte[] detokPush(long detok, int[] ids);

    static native byte[] detokFinish(long detok);

    static native void detokFree(long detok);

    static native long logNew();

    static native byte[] logNext(long log);

    static native int logLost(long log);

    static native void logFree(long log);
}
