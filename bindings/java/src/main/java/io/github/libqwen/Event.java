// Events: news of a reply, and how they are read from what events.c writes.

package io.github.libqwen;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/** News of a reply. Text that nobody took in time comes as one event. Immutable. */
public final class Event {
    private static final int[] NO_IDS = {};
    private static final Usage NO_USAGE = new Usage(0, 0, 0);

    private final EventKind kind;
    private final int choice;
    private final int finish;
    private final String text;
    /** What the model wrote, where that is not the text; null otherwise. */
    private final byte[] written;
    private final int[] tokens;
    private final List<TokenLogprob> logprobs;
    private final ToolCall toolCall;
    private final Usage usage;

    Event(EventKind kind, int choice, String text, byte[] written, int[] tokens, List<TokenLogprob> logprobs) {
        this(kind, choice, 0, text, written, tokens, logprobs, null, NO_USAGE);
    }

    private Event(EventKind kind, int choice, int finish, String text, byte[] written, int[] tokens,
            List<TokenLogprob> logprobs, ToolCall toolCall, Usage usage) {
        this.kind = kind;
        this.choice = choice;
        this.finish = finish;
        this.text = text;
        this.written = written;
        this.tokens = tokens;
        this.logprobs = logprobs;
        this.toolCall = toolCall;
        this.usage = usage;
    }

    /**
     * What the event is.
     *
     * @return the kind; pass over UNKNOWN, which is of a later library
     */
    public EventKind kind() {
        return kind;
    }

    /**
     * Which of the n replies it is about.
     *
     * @return the index, from 0
     */
    public int choice() {
        return choice;
    }

    /**
     * New text: whole characters always. Any kind of event may bring some.
     *
     * @return the text, often empty
     */
    public String text() {
        return text;
    }

    /**
     * The bytes that the model wrote for the text. They differ from it where they are no UTF-8, which is
     * U+FFFD in the text.
     *
     * @return a copy
     */
    public byte[] bytes() {
        return written == null ? text.getBytes(UTF_8) : written.clone();
    }

    /**
     * The ids of the tokens generated since the last event.
     *
     * @return a copy
     */
    public int[] tokens() {
        return tokens.length == 0 ? tokens : tokens.clone();
    }

    /**
     * The number of those tokens.
     *
     * @return the number
     */
    public int numTokens() {
        return tokens.length;
    }

    /**
     * With the option logprobs: of all those tokens, in their order.
     *
     * @return the list, empty without the option
     */
    public List<TokenLogprob> logprobs() {
        return logprobs;
    }

    /**
     * The call that a TOOL_DELTA or TOOL_CALL tells of.
     *
     * @return the call
     */
    public Optional<ToolCall> toolCall() {
        return Optional.ofNullable(toolCall);
    }

    /**
     * Why the reply ended, on a FINISHED or CHOICE_FINISHED.
     *
     * @return the reason
     */
    public Optional<FinishReason> finish() {
        return finish == 0 ? Optional.empty() : Optional.of(FinishReason.of(finish));
    }

    /**
     * The tokens of the whole request, on a FINISHED.
     *
     * @return the counts; 0 on other events
     */
    public Usage usage() {
        return usage;
    }

    @Override
    public String toString() {
        return "Event[" + kind + " choice=" + choice + " text=" + text + "]";
    }

    /** An event and what belongs to it alone: whose it is, and the error of one that FAILED. */
    record Received(long tag, Event event, QwenException error) {
        boolean isLast() {
            return event.kind == EventKind.FINISHED || event.kind == EventKind.FAILED;
        }

        /** Whether the event says anything that its end does not. */
        boolean isNews() {
            return error == null || !event.text.isEmpty() || event.tokens.length > 0;
        }
    }

    static ByteBuffer buffer(byte[] bytes) {
        return ByteBuffer.wrap(bytes).order(ByteOrder.nativeOrder());
    }

    /** Reads the next event; events.c has the layout. */
    static Received read(ByteBuffer in) {
        long tag = in.getLong();
        EventKind kind = EventKind.of(in.getInt());
        int choice = in.getInt();
        int finish = in.getInt();
        int form = in.getInt();
        long prompt = in.getLong();
        long completion = in.getLong();
        long cached = in.getLong();
        int textBytes = in.getInt();
        int writtenBytes = in.getInt();
        int numIds = in.getInt();
        int numLogprobs = in.getInt();
        int idBytes = in.getInt();
        int nameBytes = in.getInt();
        int argumentsBytes = in.getInt();
        int code = in.getInt();
        int messageBytes = in.getInt();
        int detailBytes = in.getInt();
        String text = text(in, textBytes);
        byte[] written = writtenBytes < 0 ? null : bytes(in, writtenBytes);
        int[] ids = ids(in, numIds);
        ToolCall call = null;
        if (idBytes > 0) {
            Optional<ArgumentsForm> known = form == 0 ? Optional.empty() : Optional.of(ArgumentsForm.of(form));
            call = new ToolCall(text(in, idBytes), text(in, nameBytes), text(in, argumentsBytes), known);
        }
        QwenException error =
                code == 0 ? null : QwenException.of(code, bytes(in, messageBytes), bytes(in, detailBytes));
        Usage usage = prompt == 0 && completion == 0 ? NO_USAGE : new Usage(prompt, completion, cached);
        List<TokenLogprob> logprobs = logprobs(in, numLogprobs);
        Event event = new Event(kind, choice, finish, text, written, ids, logprobs, call, usage);
        return new Received(tag, event, error);
    }

    private static byte[] bytes(ByteBuffer in, int length) {
        byte[] bytes = new byte[length];
        in.get(bytes);
        return bytes;
    }

    private static String text(ByteBuffer in, int length) {
        if (length == 0) {
            return "";
        }
        String text = new String(in.array(), in.position(), length, UTF_8);
        in.position(in.position() + length);
        return text;
    }

    private static int[] ids(ByteBuffer in, int length) {
        if (length == 0) {
            return NO_IDS;
        }
        int[] ids = new int[length];
        for (int i = 0; i < length; i++) {
            ids[i] = in.getInt();
        }
        return ids;
    }

    private static List<TokenLogprob> logprobs(ByteBuffer in, int length) {
        if (length == 0) {
            return List.of();
        }
        TokenLogprob[] all = new TokenLogprob[length];
        for (int i = 0; i < length; i++) {
            TokenLogprob[] top = new TokenLogprob[in.getInt()];
            TokenLogprob itself = logprob(in, List.of());
            for (int rank = 0; rank < top.length; rank++) {
                top[rank] = logprob(in, List.of());
            }
            all[i] = new TokenLogprob(itself.id(), itself.bytes(), itself.logprob(), List.of(top));
        }
        return List.of(all);
    }

    private static TokenLogprob logprob(ByteBuffer in, List<TokenLogprob> top) {
        int id = in.getInt();
        double logarithm = in.getDouble();
        return new TokenLogprob(id, bytes(in, in.getInt()), logarithm, top);
    }

    /** Whether this and the next may be told as one. */
    boolean isFollowedBy(Event next) {
        return kind == EventKind.DELTA && next.kind == EventKind.DELTA && choice == next.choice;
    }

    /** Several deltas of one choice as one. */
    static Event joined(List<Event> deltas) {
        if (deltas.size() == 1) {
            return deltas.get(0);
        }
        StringBuilder text = new StringBuilder();
        java.io.ByteArrayOutputStream written = new java.io.ByteArrayOutputStream();
        List<TokenLogprob> logprobs = new ArrayList<>();
        int[] tokens = new int[deltas.stream().mapToInt(Event::numTokens).sum()];
        int at = 0;
        for (Event delta : deltas) {
            text.append(delta.text);
            written.writeBytes(delta.bytes());
            logprobs.addAll(delta.logprobs);
            System.arraycopy(delta.tokens, 0, tokens, at, delta.tokens.length);
            at += delta.tokens.length;
        }
        boolean verbatim = deltas.stream().allMatch(delta -> delta.written == null);
        return new Event(EventKind.DELTA, deltas.get(0).choice, text.toString(),
                verbatim ? null : written.toByteArray(), tokens, List.copyOf(logprobs));
    }
}
