// Text that comes token by token.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.function.LongFunction;

/**
 * The text of a sequence of ids, for callers that stream ids themselves. It keeps back a character whose
 * last byte is still to come. Any thread may use it; calls take turns.
 */
public final class Detokenizer implements AutoCloseable {
    private final Handle handle;
    private final Cleaner.Cleanable cleanable;

    Detokenizer(long detokenizer) {
        handle = new Handle("detokenizer", detokenizer, Native::detokFree);
        cleanable = Qwen.CLEANER.register(this, handle::close);
    }

    /**
     * Takes the next ids and gives the text that is now complete. Special tokens give no text.
     *
     * @param ids the ids
     * @return whole characters, perhaps none; U+FFFD for bytes that are no UTF-8
     */
    public String push(int... ids) {
        return text(detokenizer -> Native.detokPush(detokenizer, ids));
    }

    /**
     * Ends the text; the next push begins another.
     *
     * @return what was kept back: U+FFFD for a character that never became complete
     */
    public String finish() {
        return text(Native::detokFinish);
    }

    /** Lets the detokenizer go. Again, it does nothing. */
    @Override
    public void close() {
        cleanable.clean();
    }

    private String text(LongFunction<byte[]> call) {
        try {
            return Text.of(handle.ask(call));
        } finally {
            Reference.reachabilityFence(this);
        }
    }
}
