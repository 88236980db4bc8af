// Histograms: distributions of what requests took.

package io.github.libqwen;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A distribution among an engine's {@link Metrics}; qwen.h says what each measures. Times are in seconds.
 *
 * @param bounds the upper bounds of the buckets, rising; each is in the bucket that it bounds
 * @param counts how many values each bucket has; one more than the bounds, for those above all of them
 * @param count how many values there were
 * @param sum their sum
 */
public record Histogram(List<Double> bounds, List<Long> counts, long count, double sum) {
    static Map<String, Histogram> allOf(Fields said) {
        Map<String, Histogram> all = new LinkedHashMap<>();
        said.all().forEach((name, one) -> all.put(name, of(Fields.of(one))));
        return Collections.unmodifiableMap(all);
    }

    private static Histogram of(Fields said) {
        return new Histogram(said.listOf("bounds").stream().map(bound -> ((Number) bound).doubleValue()).toList(),
                said.listOf("counts").stream().map(count -> ((Number) count).longValue()).toList(),
                said.longOf("count"), said.doubleOf("sum"));
    }
}
