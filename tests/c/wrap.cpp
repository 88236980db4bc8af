// wrap.cpp: qwen.hpp with exceptions. Usage: wrap MODEL. What it shares with those who have none is
// tested in results.cpp, which is linked with this: two files of the two flavours in one program.
#include "check.h"

#include <qwen.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>
#if __cplusplus >= 202002L
#include <ranges>
#endif

/// Of results.cpp.
void results(const char *model);

namespace {

constexpr const char *HELLO = R"([{"role": "user", "content": "hello"}])";
constexpr const char *SHORT = R"({"max_tokens": 20, "ignore_eos": true, "seed": 1})";

void exceptions_pass_over_c(const qwen::Engine &engine, const char *model) {
    const auto options = qwen::Options::generation().merge(SHORT);
    qwen::Session session(engine);
    int calls = 0;
    try {
        session.chat("hello", options, [&](qwen::EventView) {
            ++calls;
            throw std::runtime_error("mine");
        });
        CHECK(false);
    } catch (const std::runtime_error &error) {
        CHECK(std::string(error.what()) == "mine" && calls == 1);
    }
    CHECK(session.try_reply().error().code() == QWEN_E_STATE);
    CHECK(session.messages().find("user") == std::string::npos); // the turn was dropped
    const auto said = session.chat("hello", options);            // and the session goes on
    CHECK(!said.empty() && session.reply() == said);
    auto fork = session.fork();
    fork.set_system("Be brief.");
    fork.reset_system();
    fork.edit(1, "other");
    CHECK(fork.messages() != session.messages());
    fork.load(session.save());
    CHECK(fork.messages() == session.messages());
    CHECK(fork.try_load("x").error().code() == QWEN_E_CORRUPT);
    try {
        qwen::Engine::open(model, {}, [](const qwen_load_progress &) { throw 7; });
        CHECK(false);
    } catch (int thrown) {
        CHECK(thrown == 7);
    }
    try {
        qwen::Options::engine().set("seed", 1);
        CHECK(false);
    } catch (const qwen::Error &error) {
        CHECK(error.code() == QWEN_E_OPTION && error.detail().find("seed") != std::string::npos);
    }
}

void tools_in_a_session(const qwen::Engine &engine) {
    auto options = qwen::Options::generation().merge(SHORT);
    options.merge(R"({"tools": [{"name": "find"}], "tool_choice":
        {"type": "function", "function": {"name": "find"}}})");
    qwen::Session session(engine);
    CHECK(session.try_tool_result("x", options).error().code() == QWEN_E_STATE);
    int deltas = 0;
    session.chat("hello", options, [&](qwen::EventView event) {
        deltas += event.kind() == QWEN_EVENT_TOOL_DELTA;
        CHECK((event.kind() != QWEN_EVENT_TOOL_DELTA) == event.tool_name().empty());
        CHECK(event.tool_id().empty() == event.tool_name().empty());
        CHECK(event.tool_arguments().empty() && event.tool_arguments_form() == 0);
    });
    CHECK(deltas > 0);
    try {
        session.tool_result("x", options);
        CHECK(false);
    } catch (const qwen::Error &error) {
        CHECK(error.code() == QWEN_E_STATE);
    }
}

void logprobs_with_tokens(const qwen::Engine &engine) {
    auto options = qwen::Options::generation().merge(SHORT);
    options.merge(R"({"logprobs": true, "top_logprobs": 2})");
    auto request = qwen::Request::chat(engine, HELLO, options);
    std::size_t told = 0;
    request.submit();
    for (const auto &event : request) {
        const auto ids = event.tokens();
        CHECK(event.num_logprobs() == ids.size());
        CHECK(event.logprobs(ids.size()).empty() && event.logprobs_json().front() == '[');
        for (std::size_t at = 0; at < ids.size(); ++at) {
            const auto ranks = event.logprobs(at);
            CHECK(ranks.size() == 3 && ranks[0].id == ids[at] && ranks[0].logprob < 0);
            CHECK(ranks[1].logprob >= ranks[2].logprob && !ranks[1].bytes.empty());
        }
        told += ids.size();
    }
    CHECK(told == 20);
}

void ranges(const qwen::Engine &engine) {
    const auto options = qwen::Options::generation().merge(SHORT);
    auto request = qwen::Request::chat(engine, HELLO, options);
    std::vector<uint32_t> ids;
    std::string bytes;
    int32_t last = 0;
    request.submit();
    for (const auto &event : request) {
        const auto more = event.tokens();
        ids.insert(ids.end(), more.begin(), more.end());
        bytes += event.bytes();
        last = event.kind();
        if (last == QWEN_EVENT_FINISHED)
            CHECK(event.usage().completion_tokens == 20);
    }
    CHECK(last == QWEN_EVENT_FINISHED && ids.size() == 20);
    CHECK(engine.tokenizer().decode(ids) == bytes);
    qwen::Queue queue;
    auto first = qwen::Request::tokens(engine, {1, 2, 3}, options);
    auto second = qwen::Request::chat(engine, HELLO, options);
    first.submit(queue, 1);
    second.submit(queue, 2);
    uint64_t ended = 0;
    while (ended != 3) {
        for (const auto event : queue.next()) {
            if (event.kind() == QWEN_EVENT_FINISHED)
                ended += event.tag();
            CHECK(event.kind() != QWEN_EVENT_FAILED && event.error().code() == QWEN_OK);
        }
    }
    CHECK(queue.try_next().error().code() == QWEN_E_END);
}

/// The iterators are what the algorithms of C++17 and the concepts of C++20 want.
void algorithms(const qwen::Engine &engine) {
    using qwen::EventView;
    const auto options = qwen::Options::generation().merge(SHORT);
    const auto is_delta = [](const EventView &event) { return event.kind() == QWEN_EVENT_DELTA; };
    auto request = qwen::Request::chat(engine, HELLO, options);
    request.submit();
    CHECK(std::find_if(request.begin(), request.end(), is_delta)->tokens().size() > 0);
    const auto more = request.begin();
    auto before = more;
    // A slow reader finds the rest of the reply, and may find its end, in one event.
    CHECK(before++ == more && before != more && more->kind() != QWEN_EVENT_FAILED);
    qwen::Queue queue;
    auto queued = qwen::Request::chat(engine, HELLO, options);
    queued.submit(queue, 1);
    auto events = queue.next();
    CHECK(std::distance(events.begin(), events.end()) == static_cast<long>(events.size()));
#if __cplusplus >= 202002L
    static_assert(
        std::ranges::input_range<qwen::Request> && std::ranges::input_range<qwen::ResultEvents> &&
        std::ranges::forward_range<qwen::Events> && std::ranges::sized_range<qwen::Events> &&
        std::ranges::common_range<qwen::Request>);
    auto ranged = qwen::Request::chat(engine, HELLO, options);
    ranged.submit();
    std::size_t tokens = 0;
    const auto count = [](const EventView &event) { return event.tokens().size(); };
// Clang before 16 cannot compile the views of GCC's library.
#if !defined(__clang__) || __clang_major__ >= 16
    for (const auto more_tokens :
         ranged | std::views::filter(is_delta) | std::views::transform(count))
        tokens += more_tokens;
    CHECK(tokens > 0 && tokens <= 20);
#else
    std::ranges::for_each(ranged, [&](const EventView &event) { tokens += count(event); });
    CHECK(tokens == 20);
#endif
#endif
}

/// Thrown where there is no value; nothing is lost on the way.
void errors_are_thrown(const qwen::Engine &engine) {
    auto request = qwen::Request::chat(engine, HELLO);
    int thrown = 0;
    try {
        for (const auto &event : request) // it is not submitted
            CHECK(event.kind() == 0);
    } catch (const std::exception &error) {
        ++thrown;
        CHECK(std::string(error.what()) == request.try_next().error().what());
    }
    auto made = qwen::Options::try_make("x");
    try {
        made.value();
    } catch (const qwen::Error &error) {
        ++thrown;
        CHECK(error.code() == QWEN_E_ARG && error.detail() == made.error().detail());
    }
    request.submit();
    try {
        request.run([](qwen::EventView) { throw std::runtime_error("mine"); });
    } catch (const std::runtime_error &) {
        ++thrown;
    }
    CHECK(thrown == 3);
    qwen::Detokenizer detokenizer(engine.tokenizer());
    CHECK(detokenizer.push(engine.tokenizer().encode("hi")) + detokenizer.finish() == "hi");
    CHECK(engine.tokenizer().token_bytes(engine.tokenizer().encode("hi").back()).back() == 'i');
    CHECK(qwen::build_info().front() == '{' && qwen::Options::describe("engine").front() == '{');
#ifdef __cpp_lib_expected
    const std::expected<qwen::Options, qwen::Error> expected =
        qwen::Options::try_make("x").expected();
    CHECK(!expected && expected.error().code() == QWEN_E_ARG);
    CHECK(qwen::Options::try_make("session").expected()->json() == "{}");
#endif
}

void with_exceptions(const char *model) {
    int lines = 0;
    qwen::check_abi();
    {
        auto options = qwen::Options::engine();
        options.set("num_threads", 1).set("max_context_tokens", 1024);
        options.log(QWEN_LOG_DEBUG, [&](auto, auto, auto) {
            ++lines;
            throw 1; // is dropped
        });
        auto engine = qwen::Engine::open(model, options);
        exceptions_pass_over_c(engine, model);
        ranges(engine);
        algorithms(engine);
        errors_are_thrown(engine);
        logprobs_with_tokens(engine);
        const std::string scored = engine.score("hello", " world");
        CHECK(scored.find("\"logprob\":-") != std::string::npos);
        CHECK(engine.score({1, 2}, {3, 4}).find("is_greedy") < 1000);
        CHECK(engine.try_score("hello", "").error().code() == QWEN_E_ARG);
        CHECK(engine.score("hello", " world").find("is_greedy") < 1000);
        const auto states = engine.embed("hello", QWEN_POOL_NONE);
        const auto last = engine.embed("hello", QWEN_POOL_LAST);
        CHECK(!last.empty() && std::equal(last.rbegin(), last.rend(), states.rbegin()));
        CHECK(engine.try_embed(std::vector<uint32_t>{}, 1).error().code() == QWEN_E_ARG);
        CHECK(engine.prometheus("m").find("qwen_steps_total{model=\"m\"} ") != std::string::npos);
        tools_in_a_session(engine);
        auto moved = std::move(engine);
        CHECK(moved.metrics().front() == '{' && moved.info().front() == '{');
        moved.shutdown(QWEN_SHUTDOWN_DRAIN);
        CHECK(moved.try_health().error().code() == QWEN_E_CLOSED);
    }
    CHECK(lines > 0);
}

} // namespace

int main(int argc, char **argv) {
    CHECK(argc == 2);
    results(argv[1]);
    with_exceptions(argv[1]);
    return 0;
}
