// JSON, as much as this package needs, for the JDK has none.

package io.github.libqwen;

import java.lang.reflect.Array;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads and writes JSON, for tools, response formats and details without another library. Objects are
 * maps in their order, arrays lists, whole numbers Long (Double beyond its range), others Double.
 */
public final class Json {
    /** How deep values may lie in each other: of text from strangers, none may exhaust the stack. */
    private static final int MAX_DEPTH = 512;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /**
     * Reads one JSON value.
     *
     * @param text the text, which has nothing else
     * @return a Map, List, String, Long, Double or Boolean, or null
     * @throws QwenException ARG for text that is not JSON
     */
    public static Object parse(String text) {
        Json reader = new Json(text);
        Object value = reader.value(0);
        reader.skipSpace();
        if (reader.at != text.length()) {
            throw reader.wrong("the end");
        }
        return value;
    }

    /**
     * Writes a value as JSON.
     *
     * @param value a Map with texts as keys, an Iterable, an array, a text, a number, a Boolean, or null
     * @return the JSON
     * @throws QwenException ARG for something else, UTF8 for text with half a character
     */
    public static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out, 0);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out, int depth) {
        if (depth > MAX_DEPTH) {
            throw QwenException.make(ErrorCode.ARG, "values lie too deep in each other for JSON", "{}");
        }
        if (value == null || value instanceof Boolean || isWhole(value)) {
            out.append(value);
        } else if (value instanceof CharSequence text) {
            quote(text.toString(), out);
        } else if (value instanceof Number number && Double.isFinite(number.doubleValue())) {
            out.append(number);
        } else if (value instanceof Map<?, ?> map) {
            char before = '{';
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                out.append(before);
                quote(String.valueOf(entry.getKey()), out);
                out.append(':');
                write(entry.getValue(), out, depth + 1);
                before = ',';
            }
            out.append(map.isEmpty() ? "{}" : "}");
        } else if (value instanceof Iterable<?> all) {
            writeList(all, out, depth);
        } else if (value.getClass().isArray()) {
            List<Object> all = new ArrayList<>();
            for (int i = 0; i < Array.getLength(value); i++) {
                all.add(Array.get(value, i));
            }
            writeList(all, out, depth);
        } else {
            throw QwenException.make(ErrorCode.ARG, "no JSON: " + value.getClass().getName() + " " + value, "{}");
        }
    }

    private static boolean isWhole(Object value) {
        return value instanceof Integer || value instanceof Long || value instanceof Short || value instanceof Byte;
    }

    private static void writeList(Iterable<?> all, StringBuilder out, int depth) {
        char before = '[';
        for (Object one : all) {
            out.append(before);
            write(one, out, depth + 1);
            before = ',';
        }
        out.append(before == '[' ? "[]" : "]");
    }

    private static void quote(String text, StringBuilder out) {
        Text.check("a text", text);
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char unit = text.charAt(i);
            if (unit == '"' || unit == '\\') {
                out.append('\\').append(unit);
            } else if (unit < ' ') {
                out.append(String.format("\\u%04x", (int) unit));
            } else {
                out.append(unit);
            }
        }
        out.append('"');
    }

    private Object value(int depth) {
        if (depth > MAX_DEPTH) {
            throw wrong("values less deep in each other");
        }
        skipSpace();
        char first = at < text.length() ? text.charAt(at) : ' ';
        switch (first) {
            case '{':
                return object(depth);
            case '[':
                return list(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) {
        Map<String, Object> map = new LinkedHashMap<>();
        at++;
        if (isNext('}')) {
            return map;
        }
        do {
            skipSpace();
            String key = string();
            expect(':');
            map.put(key, value(depth + 1));
        } while (isNext(','));
        expect('}');
        return map;
    }

    private List<Object> list(int depth) {
        List<Object> all = new ArrayList<>();
        at++;
        if (isNext(']')) {
            return all;
        }
        do {
            all.add(value(depth + 1));
        } while (isNext(','));
        expect(']');
        return all;
    }

    private String string() {
        if (at >= text.length() || text.charAt(at) != '"') {
            throw wrong("a text");
        }
        StringBuilder out = new StringBuilder();
        for (at++; at < text.length(); at++) {
            char unit = text.charAt(at);
            if (unit == '"') {
                at++;
                return out.toString();
            }
            out.append(unit == '\\' ? escaped() : unit);
        }
        throw wrong("the end of a text");
    }

    /** Reads what stands behind a backslash, and stays on its last character. */
    private char escaped() {
        at++;
        char unit = at < text.length() ? text.charAt(at) : ' ';
        if (unit == 'u' && at + 4 < text.length()) {
            try {
                at += 4;
                return (char) Integer.parseInt(text, at - 3, at + 1, 16);
            } catch (NumberFormatException e) {
                throw wrong("four hexadecimal digits");
            }
        }
        int which = "\"\\/bfnrt".indexOf(unit);
        if (which < 0) {
            throw wrong("an escape");
        }
        return "\"\\/\b\f\n\r\t".charAt(which);
    }

    private Object number() {
        int begin = at;
        while (at < text.length() && "+-0123456789.eE".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String number = text.substring(begin, at);
        try {
            return Long.valueOf(number);
        } catch (NumberFormatException notWhole) {
            try {
                return Double.valueOf(number);
            } catch (NumberFormatException e) {
                throw wrong("a value");
            }
        }
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw wrong("a value");
        }
        at += word.length();
        return value;
    }

    private void skipSpace() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private boolean isNext(char wanted) {
        skipSpace();
        boolean there = at < text.length() && text.charAt(at) == wanted;
        if (there) {
            at++;
        }
        return there;
    }

    private void expect(char wanted) {
        if (!isNext(wanted)) {
            throw wrong("`" + wanted + "`");
        }
    }

    private QwenException wrong(String wanted) {
        return QwenException.make(ErrorCode.ARG, "JSON: expected " + wanted + " at " + at, "{\"offset\":" + at + "}");
    }
}
