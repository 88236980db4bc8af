// values.hpp: what goes into calls and comes out of them: options and events.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_VALUES_HPP
#define QWEN_VALUES_HPP

#include "support.hpp"

#include <cstddef>
#include <functional>
#include <iterator>
#include <limits>

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// Options of one kind. `set` takes a whole number, a number, a truth value or a text.
class Options {
  public:
    static Result<Options> try_make(std::string_view kind) {
        return detail::make<Options, qwen_options>([&](qwen_options **options, qwen_error **error) {
            return qwen_options_new(kind.data(), kind.size(), options, error);
        });
    }
    template <typename Value> Result<Done> try_set(std::string_view key, const Value &value) {
        if constexpr (std::is_unsigned_v<Value> && sizeof(Value) >= sizeof(int64_t))
            if (value > static_cast<Value>(std::numeric_limits<int64_t>::max()))
                return Error(QWEN_E_OPTION, "the value of " + std::string(key) + " is too large",
                             "{}");
        return detail::call([&](qwen_error **error) {
            if constexpr (std::is_integral_v<Value>) {
                return qwen_options_set_i64(get(), key.data(), key.size(),
                                            static_cast<int64_t>(value), error);
            } else if constexpr (std::is_floating_point_v<Value>) {
                return qwen_options_set_f64(get(), key.data(), key.size(),
                                            static_cast<double>(value), error);
            } else {
                const std::string_view text = value;
                return qwen_options_set_str(get(), key.data(), key.size(), text.data(), text.size(),
                                            error);
            }
        });
    }
    Result<Done> try_merge(std::string_view json) {
        return detail::call([&](qwen_error **error) {
            return qwen_options_merge_json(get(), json.data(), json.size(), error);
        });
    }
    /// `line(level, target, message)` is called on any thread; what it throws is dropped.
    using LogLine = std::function<void(int32_t, std::string_view, std::string_view)>;
    Result<Done> try_log(int32_t level, LogLine line) {
        auto owned = std::make_unique<LogLine>(std::move(line));
        auto done = detail::call([&](qwen_error **error) {
            return qwen_options_set_log(get(), level, &Options::log_line, owned.get(),
                                        &Options::free_line, error);
        });
        if (done)
            owned.release();
        return done;
    }
    Result<std::string> try_json() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_options_get_json(get(), json, error);
        });
    }
    /// Every key of a kind, with its type, range and default, as JSON.
    static Result<std::string> try_describe(std::string_view kind) {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_options_describe_json(kind.data(), kind.size(), json, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    static std::string describe(std::string_view kind) { return try_describe(kind).value(); }
    static Options engine() { return try_make("engine").value(); }
    static Options generation() { return try_make("generation").value(); }
    static Options session() { return try_make("session").value(); }
    template <typename Value> Options &set(std::string_view key, const Value &value) & {
        try_set(key, value).value();
        return *this;
    }
    Options &merge(std::string_view json) & {
        try_merge(json).value();
        return *this;
    }
    Options &log(int32_t level, LogLine line) & {
        try_log(level, std::move(line)).value();
        return *this;
    }
    // The same on a temporary: auto options = Options::generation().set("seed", 1);
    template <typename Value> Options set(std::string_view key, const Value &value) && {
        return std::move(set(key, value));
    }
    Options merge(std::string_view json) && { return std::move(merge(json)); }
    Options log(int32_t level, LogLine line) && { return std::move(log(level, std::move(line))); }
    std::string json() const { return try_json().value(); }
#endif
    explicit Options(qwen_options *raw) noexcept : handle_(raw) {}
    qwen_options *get() const noexcept { return handle_.get(); }

  private:
    static void log_line(int32_t level, const char *target, const char *message, uint64_t length,
                         void *user) noexcept {
        auto line = [&](int32_t at, std::string_view from, std::string_view text) {
            (*static_cast<LogLine *>(user))(at, from, text);
        };
        detail::Callback<decltype(line)>{line}(level, target, std::string_view(message, length));
    }
    static void free_line(void *user) noexcept { delete static_cast<LogLine *>(user); }

    detail::Handle<qwen_options, qwen_options_free> handle_;
};

/// Options or none, as an argument.
class OptionsArgument {
  public:
    OptionsArgument() = default;
    OptionsArgument(const Options &options) : raw_(options.get()) {}
    const qwen_options *get() const noexcept { return raw_; }

  private:
    const qwen_options *raw_ = nullptr;
};

/// A token and how likely the model found it.
struct Logprob {
    uint32_t id;
    double logprob;
    std::string bytes;
};

/// News of a request, lent: it lives as long as what lent it.
class EventView {
  public:
    explicit EventView(const qwen_event *raw) noexcept : raw_(raw) {}
    uint64_t tag() const noexcept { return qwen_event_tag(raw_); }
    /// QWEN_EVENT_*.
    int32_t kind() const noexcept { return qwen_event_kind(raw_); }
    /// Which of several replies it is about.
    uint32_t choice() const noexcept { return qwen_event_choice(raw_); }
    /// Whole UTF-8 characters.
    std::string_view text() const noexcept { return view(&qwen_event_text); }
    /// The same as the model wrote it.
    std::string_view bytes() const noexcept {
        uint64_t length = 0;
        auto *bytes = reinterpret_cast<const char *>(qwen_event_bytes(raw_, &length));
        return {bytes, static_cast<std::size_t>(length)};
    }
    std::vector<uint32_t> tokens() const {
        uint64_t length = 0;
        const uint32_t *ids = qwen_event_tokens(raw_, &length);
        return {ids, ids + length};
    }
    /// How likely the model found token `index`, then the likeliest ones in its place.
    std::vector<Logprob> logprobs(uint64_t index) const {
        std::vector<Logprob> ranks;
        qwen_logprob found = {};
        found.struct_size = sizeof found;
        for (uint64_t rank = 0; rank <= qwen_event_num_top_logprobs(raw_, index); ++rank)
            if (qwen_event_logprob(raw_, index, rank, &found, nullptr) == QWEN_OK)
                ranks.push_back({found.id, found.logprob,
                                 std::string(reinterpret_cast<const char *>(found.bytes),
                                             static_cast<std::size_t>(found.bytes_len))});
        return ranks;
    }
    std::size_t num_logprobs() const noexcept {
        return static_cast<std::size_t>(qwen_event_num_logprobs(raw_));
    }
    Result<std::string> try_logprobs_json() const {
        return detail::text([&](qwen_buf **json, qwen_error **error) {
            return qwen_event_logprobs_json(raw_, json, error);
        });
    }
#ifdef QWEN_EXCEPTIONS
    std::string logprobs_json() const { return try_logprobs_json().value(); }
#endif
    /// Of the call that the event tells of, or empty.
    std::string_view tool_id() const noexcept { return view(&qwen_event_tool_id); }
    std::string_view tool_name() const noexcept { return view(&qwen_event_tool_name); }
    std::string_view tool_arguments() const noexcept { return view(&qwen_event_tool_arguments); }
    /// QWEN_ARGUMENTS_*, or 0.
    int32_t tool_arguments_form() const noexcept { return qwen_event_tool_arguments_form(raw_); }
    /// QWEN_FINISH_*, or 0.
    int32_t finish_reason() const noexcept { return qwen_event_finish_reason(raw_); }
    qwen_usage usage() const noexcept {
        qwen_usage usage = {};
        usage.struct_size = sizeof usage;
        qwen_event_usage(raw_, &usage, nullptr);
        return usage;
    }
    /// Why the request failed; code QWEN_OK where it did not.
    Error error() const { return Error(qwen_event_error(raw_)); }

  protected:
    std::string_view view(const char *(*read)(const qwen_event *, uint64_t *)) const noexcept {
        uint64_t length = 0;
        const char *text = read(raw_, &length);
        return {text, static_cast<std::size_t>(length)};
    }
    const qwen_event *raw_;
};

/// News of a request, owned. One that was moved from is empty: kind 0, no text.
class Event : public EventView {
  public:
    explicit Event(qwen_event *raw) noexcept : EventView(raw), handle_(raw) {}
    Event(Event &&other) noexcept
        : EventView(std::exchange(other.raw_, nullptr)), handle_(std::move(other.handle_)) {}
    Event &operator=(Event &&other) noexcept {
        handle_ = std::move(other.handle_);
        raw_ = std::exchange(other.raw_, nullptr);
        return *this;
    }

  private:
    detail::Handle<qwen_event, qwen_event_free> handle_;
};

/// Several events; a range of EventView, which are lent: they live as long as this.
class Events {
  public:
    class Iterator {
      public:
        using iterator_category = std::input_iterator_tag;
        using iterator_concept = std::forward_iterator_tag;
        using value_type = EventView;
        using difference_type = std::ptrdiff_t;
        using pointer = void;
        using reference = EventView;

        Iterator() = default;
        Iterator(const qwen_events *list, uint64_t index) noexcept : list_(list), index_(index) {}
        EventView operator*() const noexcept { return EventView(qwen_events_at(list_, index_)); }
        Iterator &operator++() noexcept { return ++index_, *this; }
        Iterator operator++(int) noexcept { return {list_, index_++}; }
        friend bool operator==(const Iterator &a, const Iterator &b) noexcept {
            return a.index_ == b.index_;
        }
        friend bool operator!=(const Iterator &a, const Iterator &b) noexcept { return !(a == b); }

      private:
        const qwen_events *list_ = nullptr;
        uint64_t index_ = 0;
    };
    explicit Events(qwen_events *raw) noexcept : handle_(raw) {}
    std::size_t size() const noexcept {
        return static_cast<std::size_t>(qwen_events_len(handle_.get()));
    }
    bool empty() const noexcept { return size() == 0; }
    /// Event `index`; an empty one beyond the last.
    EventView operator[](std::size_t index) const noexcept {
        return EventView(qwen_events_at(handle_.get(), index));
    }
    Iterator begin() const noexcept { return {handle_.get(), 0}; }
    Iterator end() const noexcept { return {handle_.get(), size()}; }

  private:
    detail::Handle<qwen_events, qwen_events_free> handle_;
};

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
