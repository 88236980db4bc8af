// session.hpp: a conversation.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_SESSION_HPP
#define QWEN_SESSION_HPP

#include "engine.hpp"

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// A conversation. `on_event(EventView)` may return QWEN_CONTINUE, QWEN_STOP or QWEN_CANCEL, true
/// or false (which cancels), or nothing. Calls that reply return the whole reply.
class Session {
  public:
    static Result<Session> try_make(const Engine &engine, OptionsArgument options = {}) {
        return detail::make<Session, qwen_session>([&](qwen_session **made, qwen_error **error) {
            return qwen_session_new(engine.get(), options.get(), made, error);
        });
    }
    template <typename OnEvent = detail::Silent>
    Result<std::string> try_chat(std::string_view text, OptionsArgument options = {},
                                 OnEvent &&on_event = {}) {
        using Function = std::remove_reference_t<OnEvent>;
        detail::Callback<Function> callback{on_event};
        return reply_after(callback.finish(detail::call([&](qwen_error **error) {
            return qwen_session_chat(get(), text.data(), text.size(), options.get(),
                                     &detail::on_event<Function>, &callback, error);
        })));
    }
    template <typename OnEvent = detail::Silent>
    Result<std::string> try_regenerate(OptionsArgument options = {}, OnEvent &&on_event = {}) {
        using Function = std::remove_reference_t<OnEvent>;
        detail::Callback<Function> callback{on_event};
        return reply_after(callback.finish(detail::call([&](qwen_error **error) {
            return qwen_session_regenerate(get(), options.get(), &detail::on_event<Function>,
                                           &callback, error);
        })));
    }
    /// The reply to the result of the tool that the last reply calls.
    template <typename OnEvent = detail::Silent>
    Result<std::string> try_tool_result(std::string_view result, OptionsArgument options = {},
                                        OnEvent &&on_event = {}) {
        using Function = std::remove_reference_t<OnEvent>;
        detail::Callback<Function> callback{on_event};
        return reply_after(callback.finish(detail::call([&](qwen_error **error) {
            return qwen_session_tool_result(get(), result.data(), result.size(), options.get(),
                                            &detail::on_event<Function>, &callback, error);
        })));
    }
    /// `how`: QWEN_STOP or QWEN_CANCEL. Any thread.
    Result<Done> try_cancel(int32_t how) {
        return detail::call(
            [&](qwen_error **error) { return qwen_session_cancel(get(), how, error); });
    }
    /// The last reply.
    Result<std::string> try_reply() const {
        return detail::text([&](qwen_buf **reply, qwen_error **error) {
            return qwen_session_reply(get(), reply, error);
        });
    }
    Result<std::string> try_messages() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_session_messages_json(get(), json, error);
        });
    }
    Result<Done> try_append(std::string_view messages_json) {
        return detail::call([&](qwen_error **error) {
            return qwen_session_append_json(get(), messages_json.data(), messages_json.size(),
                                            error);
        });
    }
    Result<Done> try_truncate(uint64_t num_turns) {
        return detail::call(
            [&](qwen_error **error) { return qwen_session_truncate(get(), num_turns, error); });
    }
    Result<Done> try_set_system(std::string_view text) {
        return detail::call([&](qwen_error **error) {
            return qwen_session_set_system(get(), text.data() ? text.data() : "", text.size(),
                                           error);
        });
    }
    /// Takes the system message back to the chat format's own.
    Result<Done> try_reset_system() {
        return detail::call(
            [&](qwen_error **error) { return qwen_session_set_system(get(), nullptr, 0, error); });
    }
    /// `index` counts messages from 0, the system message.
    Result<Done> try_edit(uint64_t index, std::string_view text) {
        return detail::call([&](qwen_error **error) {
            return qwen_session_edit(get(), index, text.data(), text.size(), error);
        });
    }
    Result<Session> try_fork() const {
        return detail::make<Session, qwen_session>([&](qwen_session **made, qwen_error **error) {
            return qwen_session_fork(get(), made, error);
        });
    }
    /// Bytes, not text.
    Result<std::string> try_save() const {
        return detail::text([&](qwen_buf **saved, qwen_error **error) {
            return qwen_session_save(get(), saved, error);
        });
    }
    Result<Done> try_load(std::string_view saved) {
        return detail::call([&](qwen_error **error) {
            return qwen_session_load(get(), reinterpret_cast<const uint8_t *>(saved.data()),
                                     saved.size(), error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    explicit Session(const Engine &engine, OptionsArgument options = {})
        : Session(try_make(engine, options).value()) {}
    template <typename OnEvent = detail::Silent>
    std::string chat(std::string_view text, OptionsArgument options = {}, OnEvent &&on_event = {}) {
        return try_chat(text, options, std::forward<OnEvent>(on_event)).value();
    }
    template <typename OnEvent = detail::Silent>
    std::string regenerate(OptionsArgument options = {}, OnEvent &&on_event = {}) {
        return try_regenerate(options, std::forward<OnEvent>(on_event)).value();
    }
    template <typename OnEvent = detail::Silent>
    std::string tool_result(std::string_view result, OptionsArgument options = {},
                            OnEvent &&on_event = {}) {
        return try_tool_result(result, options, std::forward<OnEvent>(on_event)).value();
    }
    void cancel(int32_t how) { try_cancel(how).value(); }
    std::string reply() const { return try_reply().value(); }
    std::string messages() const { return try_messages().value(); }
    void append(std::string_view messages_json) { try_append(messages_json).value(); }
    void truncate(uint64_t num_turns) { try_truncate(num_turns).value(); }
    void set_system(std::string_view text) { try_set_system(text).value(); }
    void reset_system() { try_reset_system().value(); }
    void edit(uint64_t index, std::string_view text) { try_edit(index, text).value(); }
    Session fork() const { return try_fork().value(); }
    std::string save() const { return try_save().value(); }
    void load(std::string_view saved) { try_load(saved).value(); }
#endif
    explicit Session(qwen_session *raw) noexcept : handle_(raw) {}
    qwen_session *get() const noexcept { return handle_.get(); }

  private:
    Result<std::string> reply_after(Result<Done> done) const {
        if (!done)
            return done.error();
        return try_reply();
    }

    detail::Handle<qwen_session, qwen_session_free> handle_;
};

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
