// The inside of an engine, which threads may hold while the QwenEngine itself is garbage.

package io.github.libqwen;

import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.ReentrantLock;

/** The engine's handle, its pump, and what must be closed before it. */
final class Core {
    final Handle handle;
    final Pump pump;
    private final LogPump log;
    private final ReentrantLock lock = new ReentrantLock();
    /** The sessions and requests that are not closed yet; null once the engine is. */
    private Set<Handle> children = new HashSet<>();
    private final AtomicBoolean ending = new AtomicBoolean();
    private final CountDownLatch ended = new CountDownLatch(1);

    Core(long engine, LogPump log) {
        this.log = log;
        handle = new Handle("engine", engine, Native::engineFree);
        try {
            pump = new Pump();
        } catch (Throwable e) {
            handle.close();
            throw e;
        }
    }

    /** Ends everything within one step of the engine, and waits for that. Again, it waits only. */
    void close() {
        closeLater();
        boolean interrupted = false;
        while (ended.getCount() > 0) {
            try {
                ended.await();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    /** Without waiting: for the cleaner. */
    void closeLater() {
        if (ending.compareAndSet(false, true)) {
            try {
                Workers.POOL.execute(this::end);
            } catch (OutOfMemoryError noThread) {
                end();
            }
        }
    }

    private void end() {
        try {
            handle.run(object -> Native.engineShutdown(object, Constants.SHUTDOWN_CANCEL, -1));
        } catch (QwenException e) {
            // An engine that failed has ended already: that is no news here.
        } finally {
            letGo();
        }
    }

    /** Each step whatever the others throw: close waits for the last. */
    private void letGo() {
        try {
            closeChildren();
        } finally {
            try {
                pump.close();
            } finally {
                try {
                    handle.close();
                    if (log != null) {
                        log.awaitEnd();
                    }
                } finally {
                    ended.countDown();
                }
            }
        }
    }

    private void closeChildren() {
        Set<Handle> all;
        lock.lock();
        try {
            all = children;
            children = null;
        } finally {
            lock.unlock();
        }
        all.forEach(Handle::close);
    }

    /** Has the engine close a child that is still open at its end; closes it at once if that has come. */
    void adopt(Handle child) {
        lock.lock();
        try {
            if (children != null) {
                children.add(child);
                return;
            }
        } finally {
            lock.unlock();
        }
        child.close();
        throw QwenException.closed("engine");
    }

    /** Closes a child. */
    void dismiss(Handle child) {
        lock.lock();
        try {
            if (children != null) {
                children.remove(child);
            }
        } finally {
            lock.unlock();
        }
        child.close();
    }
}
