// engine.hpp: a loaded model.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_ENGINE_HPP
#define QWEN_ENGINE_HPP

#include "tokenizer.hpp"
#include "values.hpp"

namespace qwen {
inline namespace QWEN_FLAVOUR {

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
    /// The same as text for Prometheus, with the label "model" unless it is empty.
    Result<std::string> try_prometheus(std::string_view model = {}) const {
        return detail::text([&](qwen_buf **text, qwen_error **error) {
            return qwen_engine_metrics_prometheus(get(), model.data(), model.size(), text, error);
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
    /// The model's hidden states of a text; `pooling` is one of QWEN_POOL_* (see qwen_embed). Waits
    /// for them.
    Result<std::vector<float>> try_embed(std::string_view text, int32_t pooling,
                                         bool normalize = false,
                                         OptionsArgument options = {}) const {
        return detail::floats([&](qwen_floats **states, qwen_error **error) {
            return qwen_embed(get(), text.data(), text.size(), pooling, normalize, options.get(),
                              states, error);
        });
    }
    Result<std::vector<float>> try_embed(const std::vector<uint32_t> &ids, int32_t pooling,
                                         bool normalize = false,
                                         OptionsArgument options = {}) const {
        return detail::floats([&](qwen_floats **states, qwen_error **error) {
            return qwen_embed_tokens(get(), ids.data(), ids.size(), pooling, normalize,
                                     options.get(), states, error);
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
    std::string prometheus(std::string_view model = {}) const {
        return try_prometheus(model).value();
    }
    std::string generation() const { return try_generation().value(); }
    std::string score(std::string_view context, std::string_view continuation,
                      OptionsArgument options = {}) const {
        return try_score(context, continuation, options).value();
    }
    std::string score(const std::vector<uint32_t> &context,
                      const std::vector<uint32_t> &continuation,
                      OptionsArgument options = {}) const {
        return try_score(context, continuation, options).value();
    }
    std::vector<float> embed(std::string_view text, int32_t pooling, bool normalize = false,
                             OptionsArgument options = {}) const {
        return try_embed(text, pooling, normalize, options).value();
    }
    std::vector<float> embed(const std::vector<uint32_t> &ids, int32_t pooling,
                             bool normalize = false, OptionsArgument options = {}) const {
        return try_embed(ids, pooling, normalize, options).value();
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

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
