// The tokenizer: text to token ids and back.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.nio.file.Path;
import java.util.List;
import java.util.function.LongFunction;

/** A checkpoint's vocabulary. Any thread may use it, several at once. */
public final class Tokenizer implements AutoCloseable {
    private final Handle handle;
    private final Cleaner.Cleanable cleanable;

    Tokenizer(long tokenizer) {
        handle = new Handle("tokenizer", tokenizer, Native::tokenizerFree);
        cleanable = Qwen.CLEANER.register(this, handle::close);
    }

    /**
     * Reads the vocabulary (qwen.tiktoken or tokenizer.json) in a folder; no weights are needed.
     *
     * @param folder the folder
     * @return the tokenizer, to be closed
     */
    public static Tokenizer open(Path folder) {
        Library.load();
        return new Tokenizer(Native.tokenizerOpen(Text.bytes("folder", folder.toString())));
    }

    /**
     * Turns text into token ids. Without PARSE_SPECIALS no text becomes a control token.
     *
     * @param text the text
     * @param flags what to do otherwise
     * @return the ids
     * @throws QwenException UTF8 for text with half a character
     */
    public int[] encode(String text, EncodeFlag... flags) {
        byte[] bytes = Text.bytes("the text", text);
        return ask(tokenizer -> Native.tokenizerEncode(tokenizer, bytes, EncodeFlag.sum(flags)));
    }

    /**
     * Turns token ids into bytes, for a token can end in the middle of a character. Ids outside the
     * vocabulary give none, and special tokens none without KEEP_SPECIALS.
     *
     * @param ids the ids
     * @param flags what to do otherwise
     * @return the bytes
     */
    public byte[] decode(int[] ids, DecodeFlag... flags) {
        return ask(tokenizer -> Native.tokenizerDecode(tokenizer, ids, DecodeFlag.sum(flags)));
    }

    /**
     * Turns token ids into text; bytes that are no UTF-8 become U+FFFD.
     *
     * @param ids the ids
     * @return the text, without special tokens
     */
    public String decodeText(int[] ids) {
        return Text.of(decode(ids, DecodeFlag.LOSSY_TEXT));
    }

    /**
     * The bytes of one token, of a special token its name.
     *
     * @param id the token's id
     * @return the bytes
     * @throws QwenException ARG for an id outside the vocabulary
     */
    public byte[] tokenBytes(int id) {
        return ask(tokenizer -> Native.tokenizerTokenBytes(tokenizer, id));
    }

    /**
     * Turns a conversation into the prompt that a {@link Prompt.Chat} gives the model. No content can
     * become a control token.
     *
     * @param messages the conversation
     * @param maxWindowSize turns older than so many tokens are left out; 0 keeps all
     * @return the ids
     */
    public int[] renderChat(List<Message> messages, long maxWindowSize) {
        byte[] json = Message.toJson(messages);
        return ask(tokenizer -> Native.tokenizerRenderChat(tokenizer, json, Math.max(0, maxWindowSize)));
    }

    /**
     * The size of a vocabulary, and its control tokens.
     *
     * @param numTokens the number of tokens
     * @param endOfText the id of the end of a text
     * @param imStart the id of a message's beginning
     * @param imEnd the id of a message's end
     */
    public record Info(int numTokens, int endOfText, int imStart, int imEnd) {}

    /**
     * Describes the vocabulary.
     *
     * @return its size and control tokens
     */
    public Info info() {
        Fields said = Fields.parse(ask(Native::tokenizerInfo));
        return new Info(said.intOf("num_tokens"), said.intOf("end_of_text"), said.intOf("im_start"),
                said.intOf("im_end"));
    }

    /**
     * Begins a text that comes token by token.
     *
     * @return the detokenizer, to be closed
     */
    public Detokenizer newDetokenizer() {
        return new Detokenizer(ask(Native::detokNew));
    }

    /** Lets the tokenizer go. Again, it does nothing. */
    @Override
    public void close() {
        cleanable.clean();
    }

    private <T> T ask(LongFunction<T> call) {
        try {
            return handle.ask(call);
        } finally {
            Reference.reachabilityFence(this);
        }
    }
}
