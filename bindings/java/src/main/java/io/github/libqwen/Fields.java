// The fields of a JSON object that the library wrote, with the types that Java wants.

package io.github.libqwen;

import java.util.List;
import java.util.Map;

/** A field that is missing, as in a library of another version, has the neutral value. */
record Fields(Map<?, ?> map) {
    static Fields of(Object value) {
        return new Fields(value instanceof Map<?, ?> map ? map : Map.of());
    }

    static Fields parse(byte[] json) {
        return of(Json.parse(Text.of(json)));
    }

    @SuppressWarnings("unchecked")
    Map<String, Object> all() {
        return (Map<String, Object>) java.util.Collections.unmodifiableMap(map);
    }

    Fields fieldsOf(String key) {
        return of(map.get(key));
    }

    List<?> listOf(String key) {
        return map.get(key) instanceof List<?> list ? list : List.of();
    }

    String textOf(String key) {
        return map.get(key) instanceof String text ? text : "";
    }

    long longOf(String key) {
        return map.get(key) instanceof Number number ? number.longValue() : 0;
    }

    int intOf(String key) {
        return (int) longOf(key);
    }

    double doubleOf(String key) {
        return map.get(key) instanceof Number number ? number.doubleValue() : Double.NaN;
    }

    boolean isTrue(String key) {
        return Boolean.TRUE.equals(map.get(key));
    }
}
