// tokenizer.hpp: text to token ids, and ids to text.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_TOKENIZER_HPP
#define QWEN_TOKENIZER_HPP

#include "support.hpp"

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// A checkpoint's vocabulary.
class Tokenizer {
  public:
    static Result<Tokenizer> try_open(std::string_view folder) {
        return detail::make<Tokenizer, qwen_tokenizer>(
            [&](qwen_tokenizer **made, qwen_error **error) {
                return qwen_tokenizer_open(folder.data(), folder.size(), made, error);
            });
    }
    /// `flags`: QWEN_ENCODE_*.
    Result<std::vector<uint32_t>> try_encode(std::string_view text, uint32_t flags = 0) const {
        return detail::tokens([&](qwen_tokens **tokens, qwen_error **error) {
            return qwen_tokenizer_encode(get(), text.data(), text.size(), flags, tokens, error);
        });
    }
    /// `flags`: QWEN_DECODE_*.
    Result<std::string> try_decode(const std::vector<uint32_t> &ids, uint32_t flags = 0) const {
        return detail::text([&](qwen_buf **bytes, qwen_error **error) {
            return qwen_tokenizer_decode(get(), ids.data(), ids.size(), flags, bytes, error);
        });
    }
    Result<std::vector<uint32_t>> try_render_chat(std::string_view messages_json,
                                                  uint64_t max_window_size = 0) const {
        return detail::tokens([&](qwen_tokens **tokens, qwen_error **error) {
            return qwen_tokenizer_render_chat_json(
                get(), messages_json.data(), messages_json.size(), max_window_size, tokens, error);
        });
    }
    /// The bytes of one token, of a special token its name.
    Result<std::string> try_token_bytes(uint32_t id) const {
        return detail::text([&](qwen_buf **bytes, qwen_error **error) {
            return qwen_tokenizer_token_bytes(get(), id, bytes, error);
        });
    }
    Result<std::string> try_info() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_tokenizer_info_json(get(), json, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    std::string token_bytes(uint32_t id) const { return try_token_bytes(id).value(); }
    std::string info() const { return try_info().value(); }
    static Tokenizer open(std::string_view folder) { return try_open(folder).value(); }
    std::vector<uint32_t> encode(std::string_view text, uint32_t flags = 0) const {
        return try_encode(text, flags).value();
    }
    std::string decode(const std::vector<uint32_t> &ids, uint32_t flags = 0) const {
        return try_decode(ids, flags).value();
    }
    std::vector<uint32_t> render_chat(std::string_view messages_json,
                                      uint64_t max_window_size = 0) const {
        return try_render_chat(messages_json, max_window_size).value();
    }
#endif
    explicit Tokenizer(qwen_tokenizer *raw) noexcept : handle_(raw) {}
    qwen_tokenizer *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_tokenizer, qwen_tokenizer_free> handle_;
};

/// The text of a sequence of ids, piece by piece, for callers that stream ids themselves.
class Detokenizer {
  public:
    static Result<Detokenizer> try_make(const Tokenizer &tokenizer) {
        return detail::make<Detokenizer, qwen_detok>([&](qwen_detok **made, qwen_error **error) {
            return qwen_detok_new(tokenizer.get(), made, error);
        });
    }
    /// The text that is complete with these ids: whole UTF-8 characters, perhaps none.
    Result<std::string> try_push(const std::vector<uint32_t> &ids) {
        return detail::text([&](qwen_buf **text, qwen_error **error) {
            return qwen_detok_push(get(), ids.data(), ids.size(), text, error);
        });
    }
    /// What was kept back; the next push begins another text.
    Result<std::string> try_finish() {
        return detail::text([&](qwen_buf **text, qwen_error **error) {
            return qwen_detok_finish(get(), text, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    explicit Detokenizer(const Tokenizer &tokenizer) : Detokenizer(try_make(tokenizer).value()) {}
    std::string push(const std::vector<uint32_t> &ids) { return try_push(ids).value(); }
    std::string finish() { return try_finish().value(); }
#endif
    explicit Detokenizer(qwen_detok *raw) noexcept : handle_(raw) {}
    qwen_detok *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_detok, qwen_detok_free> handle_;
};

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
