// Replies in the future.

package io.github.libqwen;

import java.util.concurrent.CompletableFuture;

/** Puts a reply together as its events come, without a thread that waits. */
final class ReplySink implements EventSink {
    final CompletableFuture<Reply> future = new CompletableFuture<>();
    private final Reply.Collector collector = new Reply.Collector();
    /** Not to be collected, and so closed, while the reply is made. */
    private final QwenEngine owner;

    ReplySink(QwenEngine owner) {
        this.owner = owner;
    }

    @Override
    public void put(Event event) {
        collector.add(event);
    }

    @Override
    public void end(QwenException error) {
        if (future.isDone()) {
            return;
        }
        try {
            Workers.COMMON.execute(() -> complete(error));
        } catch (OutOfMemoryError noThread) {
            // On this thread rather than never.
            complete(error);
        }
    }

    private void complete(QwenException error) {
        try {
            if (error == null) {
                future.complete(collector.reply());
            } else {
                future.completeExceptionally(error);
            }
        } catch (Throwable e) {
            future.completeExceptionally(e);
        }
        java.lang.ref.Reference.reachabilityFence(owner);
    }
}
