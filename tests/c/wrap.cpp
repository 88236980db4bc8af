// wrap.cpp: qwen.hpp. Usage: wrap MODEL. Also compiled without exceptions, then only half of it.
#include <qwen.hpp>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);           \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (0)

namespace {

constexpr const char *HELLO = R"([{"role": "user", "content": "hello"}])";
constexpr const char *SHORT = R"({"max_tokens": 20, "ignore_eos": true, "seed": 1})";

static_assert(std::is_move_constructible_v<qwen::Engine> &&
              !std::is_copy_constructible_v<qwen::Engine>);

void results_without_exceptions(const char *model) {
    auto refused = qwen::Engine::try_open("no such folder");
    CHECK(!refused && refused.error().code() == QWEN_E_NOT_FOUND);
    CHECK(refused.error().detail().find("no such folder") != std::string::npos);
    auto options = qwen::Options::try_make("generation");
    CHECK(options && options->try_merge(SHORT));
    CHECK(options->try_set("tempo", 1).error().code() == QWEN_E_OPTION);
    auto longer = qwen::Options::try_make("engine");
    CHECK(longer && longer->try_set("max_context_tokens", 512));
    auto engine = qwen::Engine::try_open(model, *longer);
    CHECK(engine && engine->try_health());
    auto session = qwen::Session::try_make(*engine);
    CHECK(session);
    std::string streamed;
    auto reply = session->try_chat(std::string("he\0llo", 6), *options,
                                   [&](qwen::EventView event) { streamed += event.text(); });
    CHECK(reply && *reply == streamed);
    auto stopped =
        session->try_chat("hello", *options, [](qwen::EventView) { return QWEN_CANCEL; });
    CHECK(!stopped && stopped.error().code() == QWEN_E_CANCELLED);
}

#ifdef QWEN_EXCEPTIONS

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
    CHECK(session.messages().find("user") == std::string::npos); // the turn was dropped
    CHECK(!session.chat("hello", options).empty());              // and the session goes on
    auto fork = session.fork();
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
        logprobs_with_tokens(engine);
        const std::string scored = engine.score<std::string_view>("hello", " world");
        CHECK(scored.find("\"logprob\":-") != std::string::npos);
        CHECK(engine.score<std::vector<uint32_t>>({1, 2}, {3, 4}).find("is_greedy") < 1000);
        CHECK(engine.try_score("hello", "").error().code() == QWEN_E_ARG);
        tools_in_a_session(engine);
        auto moved = std::move(engine);
        CHECK(moved.metrics().front() == '{' && moved.info().front() == '{');
        moved.shutdown(QWEN_SHUTDOWN_DRAIN);
        CHECK(moved.try_health().error().code() == QWEN_E_CLOSED);
    }
    CHECK(lines > 0);
}

#endif

} // namespace

int main(int argc, char **argv) {
    CHECK(argc == 2);
    results_without_exceptions(argv[1]);
#ifdef QWEN_EXCEPTIONS
    with_exceptions(argv[1]);
#endif
    return 0;
}
