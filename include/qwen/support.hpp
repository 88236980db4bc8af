// support.hpp: what the classes of qwen.hpp are made of: errors, results, handles, callbacks.
//
// Not for programs: they include qwen.hpp.
#ifndef QWEN_SUPPORT_HPP
#define QWEN_SUPPORT_HPP

#include "../qwen.h"

#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#if defined(__has_include)
#if __has_include(<version>)
#include <version>
#endif
#endif
#ifdef __cpp_lib_expected
#include <expected>
#endif

// The two flavours have names of their own: a program may link files of both.
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define QWEN_EXCEPTIONS 1
#define QWEN_FLAVOUR with_exceptions
#else
#define QWEN_FLAVOUR without_exceptions
#endif

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// Why a call failed.
class Error : public std::exception {
  public:
    Error(int32_t code, std::string message, std::string detail)
        : code_(code), message_(std::move(message)), detail_(std::move(detail)) {}
    /// A copy of `error`, which stays the caller's.
    explicit Error(const qwen_error *error)
        : Error(qwen_error_code(error), qwen_error_message(error), qwen_error_detail_json(error)) {}

    /// QWEN_E_*.
    int32_t code() const noexcept { return code_; }
    /// One sentence.
    const char *what() const noexcept override { return message_.c_str(); }
    /// A JSON object with the error's data.
    const std::string &detail() const noexcept { return detail_; }

  private:
    int32_t code_;
    std::string message_;
    std::string detail_;
};

/// A value or an error. Of a moved-from Result only `operator bool` still says what it was.
template <typename T> class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const noexcept { return state_.index() == 0; }
    bool has_value() const noexcept { return state_.index() == 0; }
    /// The value; only where there is one.
    T &operator*() &noexcept { return *std::get_if<0>(&state_); }
    const T &operator*() const &noexcept { return *std::get_if<0>(&state_); }
    T &&operator*() &&noexcept { return std::move(*std::get_if<0>(&state_)); }
    T *operator->() noexcept { return std::get_if<0>(&state_); }
    const T *operator->() const noexcept { return std::get_if<0>(&state_); }
    /// The error; only where there is one.
    const Error &error() const &noexcept { return *std::get_if<1>(&state_); }
    Error &&error() &&noexcept { return std::move(*std::get_if<1>(&state_)); }
    /// The value, or `other` where there is none.
    template <typename Other> T value_or(Other &&other) && {
        return *this ? std::move(**this) : static_cast<T>(std::forward<Other>(other));
    }
#ifdef QWEN_EXCEPTIONS
    /// The value, or the error thrown.
    T value() && {
        throw_error();
        return std::move(*std::get_if<0>(&state_));
    }
    T &value() & {
        throw_error();
        return *std::get_if<0>(&state_);
    }
#endif
#ifdef __cpp_lib_expected
    /// The same as C++23 has it.
    std::expected<T, Error> expected() && {
        if (!*this)
            return std::unexpected(std::move(*this).error());
        return std::move(**this);
    }
#endif

  private:
#ifdef QWEN_EXCEPTIONS
    void throw_error() const {
        if (!*this)
            throw error();
    }
#endif
    std::variant<T, Error> state_;
};

/// The value of a Result that has nothing to say but that all went well.
using Done = std::monostate;

namespace detail {

template <auto Free> struct Deleter {
    template <typename T> void operator()(T *pointer) const noexcept { Free(pointer); }
};
template <typename T, auto Free> using Handle = std::unique_ptr<T, Deleter<Free>>;
using Buffer = Handle<qwen_buf, qwen_buf_free>;

/// Calls a function that ends with `qwen_error **`.
template <typename Call> Result<Done> call(Call &&call) {
    qwen_error *raw = nullptr;
    const int32_t status = call(&raw);
    Handle<qwen_error, qwen_error_free> error(raw);
    if (status == QWEN_OK)
        return Done{};
    return error ? Error(error.get()) : Error(status, qwen_status_name(status), "{}");
}

/// Calls a function that ends with `T **, qwen_error **` and wraps what it makes in `Owner`.
template <typename Owner, typename T, typename Call> Result<Owner> make(Call &&make) {
    T *raw = nullptr;
    auto done = call([&](qwen_error **error) { return make(&raw, error); });
    if (!done)
        return done.error();
    return Owner(raw);
}

/// Calls a function that ends with `qwen_buf **, qwen_error **`.
template <typename Call> Result<std::string> text(Call &&call) {
    auto made = make<Buffer, qwen_buf>(std::forward<Call>(call));
    if (!made)
        return made.error();
    return std::string(qwen_buf_data(made->get()), qwen_buf_len(made->get()));
}

/// Calls a function that ends with `qwen_floats **, qwen_error **`.
template <typename Call> Result<std::vector<float>> floats(Call &&call) {
    auto made = make<Handle<qwen_floats, qwen_floats_free>, qwen_floats>(std::forward<Call>(call));
    if (!made)
        return made.error();
    const float *values = qwen_floats_data(made->get());
    return std::vector<float>(values, values + qwen_floats_len(made->get()));
}

/// Calls a function that ends with `qwen_tokens **, qwen_error **`.
template <typename Call> Result<std::vector<uint32_t>> tokens(Call &&call) {
    auto made = make<Handle<qwen_tokens, qwen_tokens_free>, qwen_tokens>(std::forward<Call>(call));
    if (!made)
        return made.error();
    const uint32_t *ids = qwen_tokens_data(made->get());
    return std::vector<uint32_t>(ids, ids + qwen_tokens_len(made->get()));
}

/// A caller's function with the exception it threw, on its way through C.
template <typename Function> struct Callback {
    Function &function;
#ifdef QWEN_EXCEPTIONS
    std::exception_ptr thrown = nullptr;
#endif

    /// The function's answer. One that returns nothing, or true, wants to go on.
    template <typename... Arguments> int32_t operator()(Arguments &&...arguments) noexcept {
#ifdef QWEN_EXCEPTIONS
        try {
            return answer(std::forward<Arguments>(arguments)...);
        } catch (...) {
            thrown = std::current_exception();
            return QWEN_CANCEL;
        }
#else
        return answer(std::forward<Arguments>(arguments)...);
#endif
    }

    template <typename... Arguments> int32_t answer(Arguments &&...arguments) {
        using Answer = std::invoke_result_t<Function &, Arguments...>;
        if constexpr (std::is_void_v<Answer>) {
            function(std::forward<Arguments>(arguments)...);
            return QWEN_CONTINUE;
        } else if constexpr (std::is_same_v<Answer, bool>) {
            return function(std::forward<Arguments>(arguments)...) ? QWEN_CONTINUE : QWEN_CANCEL;
        } else {
            return function(std::forward<Arguments>(arguments)...);
        }
    }

    /// `result`, unless the function threw.
    template <typename T> T finish(T result) {
#ifdef QWEN_EXCEPTIONS
        if (thrown)
            std::rethrow_exception(std::move(thrown));
#endif
        return result;
    }
};

} // namespace detail

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
