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

    /** What waits for the future must not run on the pump's thread, which all replies need. */
    @Override
    public void end(QwenException error) {
        if (future.isDone()) {
            return;
        }
        Reply reply = error == null ? collector.reply() : null;
        future.defaultExecutor().execute(() -> {
            if (error == null) {
                future.complete(reply);
            } else {
                future.completeExceptionally(error);
            }
            java.lang.ref.Reference.reachabilityFence(owner);
        });
    }
}
