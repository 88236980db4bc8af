// The threads that wait inside C, and those that tell of what has come.

package io.github.libqwen;

import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A call that waits in C holds its thread, and a virtual thread would hold its carrier. So such calls run
 * on threads of this pool, made as they are needed, and whoever asked waits in Java.
 */
final class Workers {
    private static final AtomicInteger COUNT = new AtomicInteger();
    // Not qwen-...: so the library's own threads are named.
    static final ExecutorService POOL = Executors.newCachedThreadPool(
            task -> daemon("libqwen-call-" + COUNT.incrementAndGet(), task));

    /**
     * What must not run on the pump's thread, which all replies need. A CompletableFuture's default executor
     * makes a thread for each task where there are no more than two processors.
     */
    static final Executor COMMON = ForkJoinPool.getCommonPoolParallelism() > 0 ? ForkJoinPool.commonPool() : POOL;

    private Workers() {}

    static Thread daemon(String name, Runnable task) {
        Thread thread = new Thread(null, task, name, 0, false);
        thread.setDaemon(true);
        return thread;
    }

    /** Begins a call. */
    static <T> CompletableFuture<T> begin(Callable<T> call) {
        CompletableFuture<T> future = new CompletableFuture<>();
        POOL.execute(() -> {
            try {
                T value = call.call();
                future.complete(value);
            } catch (Throwable e) {
                future.completeExceptionally(e);
            }
        });
        return future;
    }

    /** Makes a call and waits for it; an interrupt ends the waiting and not the call. */
    static <T> T call(Callable<T> call) {
        try {
            return begin(call).get();
        } catch (InterruptedException e) {
            throw QwenException.interrupted(e);
        } catch (ExecutionException e) {
            throw rethrown(e.getCause());
        }
    }

    /** Throws what a call threw, with the caller's stack where it is one of this package's. */
    static RuntimeException rethrown(Throwable cause) {
        if (cause instanceof QwenException why) {
            return why.here();
        }
        if (cause instanceof Error error) {
            throw error;
        }
        return cause instanceof RuntimeException e ? e : new IllegalStateException(cause);
    }
}
