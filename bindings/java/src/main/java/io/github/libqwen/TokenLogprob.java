// Log-probabilities: how likely the model found the tokens of a reply, and which others.

package io.github.libqwen;

import java.util.List;

/**
 * A token and how likely the model found it, by its own logits: before logit_bias, penalties, temperature
 * and everything after it.
 *
 * @param id the token's id
 * @param bytes the token's bytes, of a control token those of its name; not always whole characters
 * @param logprob the natural logarithm of its probability; NaN of the first token of an echo
 * @param top the likeliest tokens in its place, as many as the option top_logprobs says; theirs are empty
 */
public record TokenLogprob(int id, byte[] bytes, double logprob, List<TokenLogprob> top) {}
