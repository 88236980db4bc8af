// Scores: how likely the model finds a text behind another, as evaluation harnesses ask.

package io.github.libqwen;

import java.util.List;

/**
 * The log-likelihood of a continuation.
 *
 * @param logprob the sum over its tokens, as natural logarithms
 * @param isGreedy whether each of its tokens is the likeliest in its place
 * @param tokens each of its tokens
 */
public record Score(double logprob, boolean isGreedy, List<Token> tokens) {
    /**
     * One token of a continuation.
     *
     * @param id the token's id
     * @param text the token's text, with U+FFFD for what is no UTF-8
     * @param logprob the natural logarithm of its probability
     * @param isGreedy whether it is the likeliest in its place
     */
    public record Token(int id, String text, double logprob, boolean isGreedy) {}

    static Score of(Fields said) {
        List<Token> tokens = said.listOf("tokens").stream().map(Fields::of)
                .map(one -> new Token(one.intOf("id"), one.textOf("token"), one.doubleOf("logprob"),
                        one.isTrue("is_greedy")))
                .toList();
        return new Score(said.doubleOf("logprob"), said.isTrue("is_greedy"), tokens);
    }
}
