// What a reply continues: a conversation or token ids.

package io.github.libqwen;

import java.util.List;

/** What a reply continues, and how: a {@link Chat} or {@link Tokens}. */
public sealed interface Prompt {
    /**
     * How the reply is made.
     *
     * @return the options
     */
    GenerationOptions options();

    /**
     * A conversation that ends with a user's message, or with a tool's result.
     *
     * @param messages the messages
     * @param options how to reply
     */
    record Chat(List<Message> messages, GenerationOptions options) implements Prompt {
        /**
         * A conversation with a copy of the list.
         *
         * @param messages the messages
         * @param options how to reply
         */
        public Chat {
            messages = List.copyOf(messages);
        }
    }

    /**
     * Token ids, which the model gets as they are.
     *
     * @param ids the ids
     * @param options how to continue them
     */
    record Tokens(int[] ids, GenerationOptions options) implements Prompt {    }

    /**
     * A question, answered as the checkpoint says.
     *
     * @param question the user's message
     * @return the prompt
     */
    static Chat chat(String question) {
        return chat(question, GenerationOptions.DEFAULTS);
    }

    /**
     * A question.
     *
     * @param question the user's message
     * @param options how to reply
     * @return the prompt
     */
    static Chat chat(String question, GenerationOptions options) {
        return new Chat(List.of(Message.user(question)), options);
    }
}
