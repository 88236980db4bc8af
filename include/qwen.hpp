// qwen.hpp: qwen.h for C++17 and later. Header-only, move-only objects that free themselves.
//
// What it is: every function of qwen.h, with C++ types. qwen.h says what each does, its threads and
// its errors. What it is not: another library; everything here is a call or two of qwen.h.
//
// Every operation that can fail has two flavours: `chat(...)` throws qwen::Error, `try_chat(...)`
// returns a Result. With exceptions off (-fno-exceptions) only the second is there.
//
// Exceptions thrown by a callback end the work (QWEN_CANCEL), pass over the C code unseen, and are
// thrown again from the call that was given the callback.
//
// An object that was moved from is empty: it may be freed or assigned to, and calls on it are
// QWEN_E_NULL.
#ifndef QWEN_HPP
#define QWEN_HPP

#include "qwen.h"
#include "qwen/engine.hpp"
#include "qwen/request.hpp"
#include "qwen/session.hpp"
#include "qwen/support.hpp"
#include "qwen/tokenizer.hpp"
#include "qwen/values.hpp"

namespace qwen {
inline namespace QWEN_FLAVOUR {

/// The version of the library that is loaded.
inline std::string_view version() noexcept { return qwen_version(); }
/// Its ABI; QWEN_ABI_VERSION is this header's.
inline uint32_t abi_version() noexcept { return qwen_abi_version(); }

/// Is the loaded library good for this header?
inline Result<Done> try_check_abi() {
    return detail::call([](qwen_error **error) { return qwen_check_abi(QWEN_ABI_VERSION, error); });
}
/// How the library was built, as JSON.
inline Result<std::string> try_build_info() {
    return detail::text(
        [](qwen_buf **json, qwen_error **error) { return qwen_build_info_json(json, error); });
}
#ifdef QWEN_EXCEPTIONS
inline void check_abi() { try_check_abi().value(); }
inline std::string build_info() { return try_build_info().value(); }
#endif

} // namespace QWEN_FLAVOUR
} // namespace qwen

#endif
