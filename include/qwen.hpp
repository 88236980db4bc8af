// qwen.hpp: qwen.h for C++17. Header-only, move-only objects that free themselves.
//
// What it is: the functions of qwen.h that most programs need, with C++ types. qwen.h says what
// each does, its threads and its errors. What it is not: another library; everything here is a call
// or two of qwen.h.
//
// Every operation that can fail has two flavours: `chat(...)` throws qwen::Error, `try_chat(...)`
// returns a Result. With exceptions off (-fno-exceptions) only the second is there.
//
// Exceptions thrown by a callback end the work (QWEN_CANCEL), pass over the C code unseen, and are
// thrown again from the call that was given the callback.
#ifndef QWEN_HPP
#define QWEN_HPP

#include "qwen.h"
#include "qwen/support.hpp"
#include "qwen/values.hpp"

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace qwen {

/// Is the loaded library good for this header?
inline Result<Done> try_check_abi() {
    return detail::call([](qwen_error **error) { return qwen_check_abi(QWEN_ABI_VERSION, error); });
}
#ifdef QWEN_EXCEPTIONS
inline void check_abi() { try_check_abi().value(); }
#endif

/// How long a call waits when it is not told: for ever.
inline constexpr int64_t FOR_EVER = -1;

namespace detail {

template <typename Function> int32_t on_event(const qwen_event *event, void *user) noexcept {
    return (*static_cast<Callback<Function> *>(user))(EventView(event));
}

template <typename Function>
int32_t on_progress(const qwen_load_progress *progress, void *user) noexcept {
    return (*static_cast<Callback<Function> *>(user))(*progress);
}

/// Does nothing with what it is told.
struct Silent {
    template <typename T> void operator()(const T &) const noexcept {}
};

} // namespace detail

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
    Result<std::string> try_info() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_tokenizer_info_json(get(), json, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
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

/// A loaded model.
class Engine {
  public:
    /// `progress(const qwen_load_progress &)` may return QWEN_CONTINUE or QWEN_CANCEL, true or
    /// false, or nothing.
    template <typename Progress = detail::Silent>
    static Result<Engine> try_open(std::string_view folder, OptionsArgument options = {},
                                   Progress &&progress = {}) {
        using Function = std::remove_reference_t<Progress>;
        detail::Callback<Function> callback{progress};
        return callback.finish(
            detail::make<Engine, qwen_engine>([&](qwen_engine **made, qwen_error **error) {
                return qwen_engine_open(folder.data(), folder.size(), options.get(),
                                        &detail::on_progress<Function>, &callback, made, error);
            }));
    }
    /// What `open` would need, as JSON.
    static Result<std::string> try_estimate(std::string_view folder, OptionsArgument options = {}) {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_engine_estimate_json(folder.data(), folder.size(), options.get(), json,
                                             error);
        });
    }
    Result<std::string> try_info() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_engine_info_json(get(), json, error);
        });
    }
    Result<std::string> try_metrics() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_engine_metrics_json(get(), json, error);
        });
    }
    /// The generation options' values where they are not set, as JSON.
    Result<std::string> try_generation() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_engine_generation_json(get(), json, error);
        });
    }
    /// Log-likelihood of a continuation, as JSON (see qwen_score). Waits for it.
    Result<std::string> try_score(std::string_view context, std::string_view continuation,
                                  OptionsArgument options = {}) const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_score(get(), context.data(), context.size(), continuation.data(),
                              continuation.size(), options.get(), json, error);
        });
    }
    Result<std::string> try_score(const std::vector<uint32_t> &context,
                                  const std::vector<uint32_t> &continuation,
                                  OptionsArgument options = {}) const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_score_tokens(get(), context.data(), context.size(), continuation.data(),
                                     continuation.size(), options.get(), json, error);
        });
    }
    Result<Done> try_health() const {
        return detail::call([&](qwen_error **error) { return qwen_engine_health(get(), error); });
    }
    Result<Done> try_shutdown(int32_t how, int64_t timeout_ms = FOR_EVER) {
        return detail::call([&](qwen_error **error) {
            return qwen_engine_shutdown(get(), how, timeout_ms, error);
        });
    }
    Result<Tokenizer> try_tokenizer() const {
        return detail::make<Tokenizer, qwen_tokenizer>(
            [&](qwen_tokenizer **made, qwen_error **error) {
                return qwen_tokenizer_of_engine(get(), made, error);
            });
    }
#ifdef QWEN_EXCEPTIONS
    template <typename Progress = detail::Silent>
    static Engine open(std::string_view folder, OptionsArgument options = {},
                       Progress &&progress = {}) {
        return try_open(folder, options, std::forward<Progress>(progress)).value();
    }
    static std::string estimate(std::string_view folder, OptionsArgument options = {}) {
        return try_estimate(folder, options).value();
    }
    std::string info() const { return try_info().value(); }
    std::string metrics() const { return try_metrics().value(); }
    std::string generation() const { return try_generation().value(); }
    template <typename Text>
    std::string score(const Text &context, const Text &continuation,
                      OptionsArgument options = {}) const {
        return try_score(context, continuation, options).value();
    }
    void health() const { try_health().value(); }
    void shutdown(int32_t how, int64_t timeout_ms = FOR_EVER) {
        try_shutdown(how, timeout_ms).value();
    }
    Tokenizer tokenizer() const { return try_tokenizer().value(); }
#endif
    explicit Engine(qwen_engine *raw) noexcept : handle_(raw) {}
    qwen_engine *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_engine, qwen_engine_free> handle_;
};

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
    std::string messages() const { return try_messages().value(); }
    void append(std::string_view messages_json) { try_append(messages_json).value(); }
    void truncate(uint64_t num_turns) { try_truncate(num_turns).value(); }
    void set_system(std::string_view text) { try_set_system(text).value(); }
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
        return detail::text([&](qwen_buf **reply, qwen_error **error) {
            return qwen_session_reply(get(), reply, error);
        });
    }

    detail::Handle<qwen_session, qwen_session_free> handle_;
};

/// A completion queue.
class Queue {
  public:
    static Result<Queue> try_make() { return detail::make<Queue, qwen_queue>(&qwen_queue_new); }
    /// QWEN_E_END when no live request uses the queue, QWEN_E_TIMEOUT when nothing came.
    Result<Events> try_next(uint64_t max_events = 64, int64_t timeout_ms = FOR_EVER) {
        return detail::make<Events, qwen_events>([&](qwen_events **made, qwen_error **error) {
            return qwen_queue_next(get(), max_events, timeout_ms, made, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    Queue() : Queue(try_make().value()) {}
    Events next(uint64_t max_events = 64, int64_t timeout_ms = FOR_EVER) {
        return try_next(max_events, timeout_ms).value();
    }
#endif
    explicit Queue(qwen_queue *raw) noexcept : handle_(raw) {}
    qwen_queue *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_queue, qwen_queue_free> handle_;
};

/// A request for one reply. A range over its own events: `for (const auto &event : request)`.
class Request {
  public:
    static Result<Request> try_chat(const Engine &engine, std::string_view messages_json,
                                    OptionsArgument options = {}) {
        return detail::make<Request, qwen_request>([&](qwen_request **made, qwen_error **error) {
            return qwen_request_new_chat(engine.get(), messages_json.data(), messages_json.size(),
                                         options.get(), made, error);
        });
    }
    static Result<Request> try_tokens(const Engine &engine, const std::vector<uint32_t> &ids,
                                      OptionsArgument options = {}) {
        return detail::make<Request, qwen_request>([&](qwen_request **made, qwen_error **error) {
            return qwen_request_new_tokens(engine.get(), ids.data(), ids.size(), options.get(),
                                           made, error);
        });
    }
    Result<Done> try_submit() {
        return detail::call(
            [&](qwen_error **error) { return qwen_request_submit(get(), nullptr, 0, error); });
    }
    Result<Done> try_submit(const Queue &queue, uint64_t tag) {
        return detail::call([&](qwen_error **error) {
            return qwen_request_submit(get(), queue.get(), tag, error);
        });
    }
    /// QWEN_E_END after the last event.
    Result<Event> try_next(int64_t timeout_ms = FOR_EVER) {
        return detail::make<Event, qwen_event>([&](qwen_event **made, qwen_error **error) {
            return qwen_request_next(get(), timeout_ms, made, error);
        });
    }
    /// `how`: QWEN_STOP or QWEN_CANCEL. Any thread.
    Result<Done> try_cancel(int32_t how) {
        return detail::call(
            [&](qwen_error **error) { return qwen_request_cancel(get(), how, error); });
    }
#ifdef QWEN_EXCEPTIONS
    static Request chat(const Engine &engine, std::string_view messages_json,
                        OptionsArgument options = {}) {
        return try_chat(engine, messages_json, options).value();
    }
    static Request tokens(const Engine &engine, const std::vector<uint32_t> &ids,
                          OptionsArgument options = {}) {
        return try_tokens(engine, ids, options).value();
    }
    void submit() { try_submit().value(); }
    void submit(const Queue &queue, uint64_t tag) { try_submit(queue, tag).value(); }
    Event next(int64_t timeout_ms = FOR_EVER) { return try_next(timeout_ms).value(); }
    void cancel(int32_t how) { try_cancel(how).value(); }

    /// Waits for each event in turn; ends after the last.
    class Iterator {
      public:
        explicit Iterator(Request *request) : request_(request) { ++*this; }
        const Event &operator*() const noexcept { return *event_; }
        Iterator &operator++() {
            auto next = request_->try_next();
            if (next) {
                event_ = std::make_unique<Event>(std::move(*next));
            } else if (next.error().code() == QWEN_E_END) {
                event_ = nullptr;
            } else {
                throw next.error();
            }
            return *this;
        }
        bool operator!=(std::nullptr_t) const noexcept { return event_ != nullptr; }

      private:
        Request *request_;
        std::unique_ptr<Event> event_;
    };
    Iterator begin() { return Iterator(this); }
    std::nullptr_t end() const noexcept { return nullptr; }
#endif
    explicit Request(qwen_request *raw) noexcept : handle_(raw) {}
    qwen_request *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_request, qwen_request_free> handle_;
};

} // namespace qwen

#endif
