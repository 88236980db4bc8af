// Token counts.

package io.github.libqwen;

/**
 * Tokens counted.
 *
 * @param promptTokens tokens of the prompt
 * @param completionTokens tokens of the reply
 * @param cachedTokens tokens of the prompt that were not computed, because the prefix cache had them
 */
public record Usage(long promptTokens, long completionTokens, long cachedTokens) {}
