// Text between Java and C: UTF-8 on the way in, checked, and on the way out.

package io.github.libqwen;

import static java.nio.charset.StandardCharsets.UTF_8;

final class Text {
    private Text() {}

    /**
     * The text as UTF-8. Half a character (a surrogate alone), which UTF-8 cannot hold, is refused:
     * getBytes would make a question mark of it without a word.
     */
    static byte[] bytes(String what, String text) {
        check(what, text);
        return text.getBytes(UTF_8);
    }

    static void check(String what, String text) {
        int half = halfAt(text);
        if (half >= 0) {
            throw QwenException.make(ErrorCode.UTF8,
                    what + " has half a character (a surrogate without its other half) at index " + half,
                    "{\"offset\":" + half + "}");
        }
    }

    /** The index of the first surrogate that stands alone, or -1. */
    private static int halfAt(String text) {
        for (int i = 0; i < text.length(); i++) {
            char unit = text.charAt(i);
            if (!Character.isSurrogate(unit)) {
                continue;
            }
            boolean whole = Character.isHighSurrogate(unit) && i + 1 < text.length()
                    && Character.isLowSurrogate(text.charAt(i + 1));
            if (!whole) {
                return i;
            }
            i++;
        }
        return -1;
    }

    static String of(byte[] bytes) {
        return new String(bytes, UTF_8);
    }
}
