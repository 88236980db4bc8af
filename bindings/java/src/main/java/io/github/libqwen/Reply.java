// Whole replies.

package io.github.libqwen;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * A whole reply: of several, the first.
 *
 * @param text what it says
 * @param tokens the ids of its tokens
 * @param logprobs with the option logprobs: of all tokens
 * @param thought with tools: what the model said to itself
 * @param toolCall with tools: the call that the reply ends with, if it does
 * @param finish why it ended
 * @param usage the tokens of the whole request
 */
public record Reply(String text, int[] tokens, List<TokenLogprob> logprobs, String thought,
        Optional<ToolCall> toolCall, FinishReason finish, Usage usage) {

    /** Puts a reply together. */
    static final class Collector {
        private final StringBuilder text = new StringBuilder();
        private final StringBuilder thought = new StringBuilder();
        private final List<TokenLogprob> logprobs = new ArrayList<>();
        private int[] tokens = new int[32];
        private int numTokens;
        private Optional<ToolCall> toolCall = Optional.empty();
        private FinishReason finish;
        private Usage usage = new Usage(0, 0, 0);

        void add(Event event) {
            if (event.kind() == EventKind.FINISHED) {
                usage = event.usage();
                finish = finish == null ? event.finish().orElse(null) : finish;
            }
            if (event.choice() != 0) {
                return;
            }
            switch (event.kind()) {
                case THOUGHT -> thought.append(event.text());
                case TOOL_DELTA -> { }
                case TOOL_CALL -> toolCall = event.toolCall();
                default -> text.append(event.text());
            }
            if (event.kind() == EventKind.CHOICE_FINISHED) {
                finish = event.finish().orElse(null);
            }
            logprobs.addAll(event.logprobs());
            int[] more = event.tokens();
            if (numTokens + more.length > tokens.length) {
                tokens = java.util.Arrays.copyOf(tokens, Math.max(2 * tokens.length, numTokens + more.length));
            }
            System.arraycopy(more, 0, tokens, numTokens, more.length);
            numTokens += more.length;
        }

        Reply reply() {
            return new Reply(text.toString(), java.util.Arrays.copyOf(tokens, numTokens), List.copyOf(logprobs),
                    thought.toString(), toolCall, finish, usage);
        }
    }
}
