// Exceptions: one type with a code, and subclasses for what programs usually tell apart.

package io.github.libqwen;

import java.io.Serial;
import java.util.Map;

/** Why a call failed: a code, a sentence, and details for programs. Unchecked. */
public class QwenException extends RuntimeException {
    @Serial private static final long serialVersionUID = 1;

    /** The code, as C has it. */
    private final int status;
    /** JSON of an object. */
    private final String detail;

    private QwenException(int status, String message, String detail) {
        super(message);
        this.status = status;
        this.detail = detail;
    }

    /**
     * What went wrong.
     *
     * @return the code; UNKNOWN for one that this package does not know
     */
    public ErrorCode code() {
        return ErrorCode.of(status);
    }

    /**
     * The code as the C library's number.
     *
     * @return the number
     */
    public int status() {
        return status;
    }

    /**
     * The error's data: the key, path, tensor, offset or bytes, as the code has them.
     *
     * @return JSON of an object
     */
    public String detailJson() {
        return detail;
    }

    /**
     * The error's data, read.
     *
     * @return what {@link Json#parse} makes of {@link #detailJson}
     */
    @SuppressWarnings("unchecked")
    public Map<String, Object> detail() {
        return (Map<String, Object>) Json.parse(detail);
    }

    /** CLOSED: the object, or its engine, is closed or shut down. */
    public static final class Closed extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private Closed(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** CANCELLED: the caller ended it. Where a thread was interrupted, that is the cause. */
    public static final class Cancelled extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private Cancelled(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** TIMEOUT or DEADLINE: it took longer than was allowed. */
    public static final class Timeout extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private Timeout(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** QUEUE_FULL: too many requests wait; come back later. */
    public static final class QueueFull extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private QueueFull(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** CONTEXT_FULL: the request can never fit. */
    public static final class ContextFull extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private ContextFull(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** OOM_HOST or OOM_DEVICE: there is too little memory. */
    public static final class OutOfMemory extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private OutOfMemory(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** NULL, ARG, UTF8 or OPTION: the caller's mistake, as an IllegalArgumentException is. */
    public static final class BadArgument extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private BadArgument(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** NOT_FOUND, IO, CORRUPT, UNSUPPORTED or STATE_MISMATCH: the files are not as they should be. */
    public static final class BadFile extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private BadFile(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** ENGINE_FAILED, DEVICE or NO_DEVICE: the engine is of no use; open a new one. */
    public static final class EngineFailed extends QwenException {
        @Serial private static final long serialVersionUID = 1;

        private EngineFailed(int status, String message, String detail) {
            super(status, message, detail);
        }
    }

    /** Called by the glue. */
    static QwenException of(int status, byte[] message, byte[] detail) {
        return of(status, Text.of(message), Text.of(detail));
    }

    static QwenException make(ErrorCode code, String message, String detail) {
        return of(code.number(), message, detail);
    }

    private static QwenException of(int status, String message, String detail) {
        return switch (ErrorCode.of(status)) {
            case CLOSED -> new Closed(status, message, detail);
            case CANCELLED -> new Cancelled(status, message, detail);
            case TIMEOUT, DEADLINE -> new Timeout(status, message, detail);
            case QUEUE_FULL -> new QueueFull(status, message, detail);
            case CONTEXT_FULL -> new ContextFull(status, message, detail);
            case OOM_HOST, OOM_DEVICE -> new OutOfMemory(status, message, detail);
            case NULL, ARG, UTF8, OPTION -> new BadArgument(status, message, detail);
            case NOT_FOUND, IO, CORRUPT, UNSUPPORTED, STATE_MISMATCH -> new BadFile(status, message, detail);
            case ENGINE_FAILED, DEVICE, NO_DEVICE -> new EngineFailed(status, message, detail);
            default -> new QwenException(status, message, detail);
        };
    }

    static QwenException closed(String what) {
        return make(ErrorCode.CLOSED, "the " + what + " is closed", "{}");
    }

    /** For a thread that was interrupted while it waited; it stays interrupted. */
    static QwenException interrupted(InterruptedException cause) {
        Thread.currentThread().interrupt();
        QwenException made = make(ErrorCode.CANCELLED, "cancelled: the thread was interrupted", "{}");
        made.initCause(cause);
        return made;
    }

    /** The same for the thread that waited: with its own stack, and this one as the cause. */
    QwenException here() {
        QwenException made = of(status, getMessage(), detail);
        made.initCause(this);
        return made;
    }
}
