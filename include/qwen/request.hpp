// request.hpp: requests for replies, and queues that collect the events of many.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_REQUEST_HPP
#define QWEN_REQUEST_HPP

#include "engine.hpp"

#include <iterator>
#include <memory>

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// A completion queue.
class Queue {
  public:
    static Result<Queue> try_make() { return detail::make<Queue, qwen_queue>(&qwen_queue_new); }
    /// QWEN_E_END when no live request uses the queue, QWEN_E_TIMEOUT when nothing came. A request
    /// that fails ends with an event QWEN_EVENT_FAILED, whose `error()` says why: look for it.
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

/// The events of a request that is submitted, each waited for in turn: a range of Result<Event>, of
/// a single pass (copies of an iterator move on together). It ends after the last event, or after
/// an error; that of a request that fails, is cancelled or runs out of time takes the place of its
/// event QWEN_EVENT_FAILED, so that nobody takes the beginning of a reply for all of it.
class ResultEvents {
  public:
    class Iterator {
      public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Result<Event>;
        using difference_type = std::ptrdiff_t;
        using pointer = const Result<Event> *;
        using reference = const Result<Event> &;

        /// The end of any.
        Iterator() = default;
        explicit Iterator(qwen_request *request) : request_(request) { next(); }
        reference operator*() const noexcept { return *event_; }
        pointer operator->() const noexcept { return event_.get(); }
        Iterator &operator++() {
            if (*event_)
                next();
            else
                event_ = nullptr;
            return *this;
        }
        Iterator operator++(int) {
            auto before = *this;
            return ++*this, before;
        }
        friend bool operator==(const Iterator &a, const Iterator &b) noexcept {
            return a.event_ == b.event_;
        }
        friend bool operator!=(const Iterator &a, const Iterator &b) noexcept { return !(a == b); }

      private:
        void next() {
            auto event =
                detail::make<Event, qwen_event>([&](qwen_event **made, qwen_error **error) {
                    return qwen_request_next(request_, FOR_EVER, made, error);
                });
            if (event && event->kind() == QWEN_EVENT_FAILED)
                event = event->error();
            if (event || event.error().code() != QWEN_E_END)
                event_ = std::make_shared<const Result<Event>>(std::move(event));
            else
                event_ = nullptr;
        }

        qwen_request *request_ = nullptr;
        std::shared_ptr<const Result<Event>> event_;
    };
    explicit ResultEvents(qwen_request *request) noexcept : request_(request) {}
    Iterator begin() const { return Iterator(request_); }
    Iterator end() const noexcept { return {}; }

  private:
    qwen_request *request_;
};

/// A request for one reply. A range over its own events, once it is submitted without a queue:
/// `for (const auto &event : request)`; `events()` is the same for those who do not want
/// exceptions.
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
    /// QWEN_E_END after the last event. That of a request that fails, is cancelled or runs out of
    /// time is QWEN_EVENT_FAILED, whose `error()` says why; a range has that error in its place.
    Result<Event> try_next(int64_t timeout_ms = FOR_EVER) {
        return detail::make<Event, qwen_event>([&](qwen_event **made, qwen_error **error) {
            return qwen_request_next(get(), timeout_ms, made, error);
        });
    }
    /// Waits for each event in turn. The range must not outlive the request.
    ResultEvents events() noexcept { return ResultEvents(get()); }
    /// Tells `on_event(EventView)` of every event until the last, and how the request ended. It may
    /// return what a session's may.
    template <typename OnEvent> Result<Done> try_run(OnEvent &&on_event) {
        using Function = std::remove_reference_t<OnEvent>;
        detail::Callback<Function> callback{on_event};
        return callback.finish(detail::call([&](qwen_error **error) {
            return qwen_request_run(get(), &detail::on_event<Function>, &callback, error);
        }));
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
    template <typename OnEvent> void run(OnEvent &&on_event) {
        try_run(std::forward<OnEvent>(on_event)).value();
    }
    void cancel(int32_t how) { try_cancel(how).value(); }

    /// Waits for each event in turn; ends after the last. Throws where waiting fails, and where the
    /// request has failed, was cancelled or ran out of time. Of a single pass.
    class Iterator {
      public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Event;
        using difference_type = std::ptrdiff_t;
        using pointer = const Event *;
        using reference = const Event &;

        /// The end of any.
        Iterator() = default;
        explicit Iterator(qwen_request *request) : next_(request) { check(); }
        reference operator*() const noexcept { return **next_; }
        pointer operator->() const noexcept { return &**this; }
        Iterator &operator++() {
            ++next_;
            return check(), *this;
        }
        Iterator operator++(int) {
            auto before = *this;
            return ++*this, before;
        }
        friend bool operator==(const Iterator &a, const Iterator &b) noexcept {
            return a.next_ == b.next_;
        }
        friend bool operator!=(const Iterator &a, const Iterator &b) noexcept { return !(a == b); }

      private:
        void check() const {
            if (next_ != ResultEvents::Iterator() && !*next_)
                throw next_->error();
        }

        ResultEvents::Iterator next_;
    };
    Iterator begin() { return Iterator(get()); }
    Iterator end() const noexcept { return {}; }
#endif
    explicit Request(qwen_request *raw) noexcept : handle_(raw) {}
    qwen_request *get() const noexcept { return handle_.get(); }

  private:
    detail::Handle<qwen_request, qwen_request_free> handle_;
};

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
