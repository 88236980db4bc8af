// Log lines on their way from C to a System.Logger.

package io.github.libqwen;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.nio.ByteBuffer;

/** A thread of its own fetches an engine's lines: the library's threads never enter Java. */
final class LogPump {
    /** How long an engine's end waits for its last lines to be written. */
    private static final long PATIENCE_MS = 2000;

    private final Logger logger;
    private final Thread thread = Workers.daemon("libqwen-log", this::work);
    /** The log of log.c, which the thread frees. */
    final long log = Native.logNew();
    final int level;

    private LogPump(Logger logger, int level) {
        this.logger = logger;
        this.level = level;
    }

    /** A log for a logger; null for one that wants nothing. */
    static LogPump of(Logger logger) {
        if (logger == null) {
            return null;
        }
        for (int level = Constants.LOG_DEBUG; level >= Constants.LOG_ERROR; level--) {
            if (logger.isLoggable(levelOf(level))) {
                return new LogPump(logger, level);
            }
        }
        return null;
    }

    private static Level levelOf(int level) {
        return switch (level) {
            case Constants.LOG_ERROR -> Level.ERROR;
            case Constants.LOG_WARN -> Level.WARNING;
            case Constants.LOG_INFO -> Level.INFO;
            default -> Level.DEBUG;
        };
    }

    /** Begins to fetch, once the library has the log, or has refused it. */
    void start() {
        thread.start();
    }

    /** What the logger throws ends the thread, as it would any: its uncaught-exception handler is told. */
    private void work() {
        try {
            for (byte[] line = Native.logNext(log); line != null; line = Native.logNext(log)) {
                write(line);
                int lost = Native.logLost(log);
                if (lost > 0) {
                    logger.log(Level.WARNING, "qwen: " + lost + " lines came too fast and were lost");
                }
            }
        } finally {
            Native.logFree(log);
        }
    }

    private void write(byte[] line) {
        ByteBuffer head = Event.buffer(line);
        int level = head.getInt();
        int targetBytes = head.getInt();
        String target = new String(line, 8, targetBytes, UTF_8);
        String message = new String(line, 8 + targetBytes, line.length - 8 - targetBytes, UTF_8);
        logger.log(levelOf(level), target + ": " + message);
    }

    /** Waits for the last lines; a handle that is still in use somewhere may hold them up. */
    void awaitEnd() {
        if (Thread.currentThread() == thread) {
            return;
        }
        try {
            thread.join(PATIENCE_MS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
