// Options: what those of every kind share. Their names are in the generated subclasses.

package io.github.libqwen;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Options by their keys, which the library checks when they are used. Immutable. */
public abstract class Options {
    private final String kind;
    private final Map<String, Object> values;

    Options(String kind, Builder<?> builder) {
        this.kind = kind;
        this.values = Collections.unmodifiableMap(new LinkedHashMap<>(builder.values));
    }

    /**
     * What is set, by the library's keys.
     *
     * @return an unmodifiable map
     */
    public Map<String, Object> asMap() {
        return values;
    }

    /**
     * Checks the options and gives them as the library holds them.
     *
     * @return JSON of an object
     * @throws QwenException OPTION for what it does not take; the detail has the key
     */
    public String canonicalJson() {
        Library.load();
        byte[] json = Json.write(values).getBytes(java.nio.charset.StandardCharsets.UTF_8);
        return Text.of(Native.canonicalOptions(Text.bytes("kind", kind), json));
    }

    /** For the library; null where nothing is set. */
    byte[] json() {
        return values.isEmpty() ? null : Json.write(values).getBytes(java.nio.charset.StandardCharsets.UTF_8);
    }

    /**
     * One key as the loaded library describes it.
     *
     * @param key its name
     * @param type boolean, integer, number, string, strings, integers, or any
     * @param choices the texts that are allowed, if not all are
     * @param defaultValue what it is where it is not set; "checkpoint" stands for what the checkpoint says
     * @param about what it does
     * @param all all that the library says, such as the range
     */
    public record Description(String key, String type, List<String> choices, Optional<Object> defaultValue,
            String about, Map<String, Object> all) {}

    /**
     * Lists the loaded library's options of a kind.
     *
     * @param kind engine, generation or session
     * @return the options
     */
    public static List<Description> describe(String kind) {
        Library.load();
        byte[] json = Native.describeOptions(Text.bytes("kind", kind));
        return Fields.parse(json).listOf("options").stream().map(Options::description).toList();
    }

    private static Description description(Object option) {
        Fields fields = Fields.of(option);
        List<String> choices = fields.listOf("choices").stream().map(String.class::cast).toList();
        return new Description(fields.textOf("key"), fields.textOf("type"), choices,
                Optional.ofNullable(fields.map().get("default")), fields.textOf("about"), fields.all());
    }

    /**
     * Sets options. Not for several threads at once.
     *
     * @param <B> the builder itself
     */
    public abstract static class Builder<B extends Builder<B>> {
        private final Map<String, Object> values = new LinkedHashMap<>();

        Builder() {}

        abstract B self();

        /**
         * Sets an option by its key, also one that this package has no name for.
         *
         * @param key the library's key
         * @param value what {@link Json#write} takes; null takes the key back to its default
         * @return this
         */
        public B set(String key, Object value) {
            values.put(key, value);
            return self();
        }

        B from(Options other) {
            values.putAll(other.values);
            return self();
        }
    }
}
