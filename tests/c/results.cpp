// results.cpp: the half of qwen.hpp that knows no exceptions. Compiled with -fno-exceptions and
// -fno-rtti, and linked with wrap.cpp, which is compiled with both.
#include "check.h"

#include <qwen.hpp>

#include <atomic>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef QWEN_EXCEPTIONS
#error "this file is compiled with -fno-exceptions"
#endif

namespace {

template <typename T>
constexpr bool moves_only =
    std::is_nothrow_move_constructible_v<T> &&std::is_nothrow_move_assignable_v<T> &&
    !std::is_copy_constructible_v<T>;
static_assert(moves_only<qwen::Options> && moves_only<qwen::Tokenizer> &&
              moves_only<qwen::Detokenizer> && moves_only<qwen::Engine> &&
              moves_only<qwen::Session> && moves_only<qwen::Request> && moves_only<qwen::Queue> &&
              moves_only<qwen::Event> && moves_only<qwen::Events>);

/// Is it an error of this code?
template <typename T> bool fails(const qwen::Result<T> &result, int32_t code) {
    return !result && !result.has_value() && result.error().code() == code &&
           *result.error().what() != '\0' && result.error().detail().front() == '{';
}

bool contains(const std::string &text, const char *part) {
    return text.find(part) != std::string::npos;
}

qwen::Options generation(const char *json) {
    auto options = qwen::Options::try_make("generation");
    CHECK(options && options->try_merge(json));
    return *std::move(options);
}

/// A reply of 12 tokens, always the same.
qwen::Options brief() { return generation(R"({"max_tokens": 12, "ignore_eos": true, "seed": 1})"); }

/// A reply that nobody waits for.
qwen::Options endless() { return generation(R"({"max_tokens": 1500, "ignore_eos": true})"); }

constexpr const char *HELLO = R"([{"role": "user", "content": "hello"}])";

qwen::Request submitted(const qwen::Engine &engine, const qwen::Options &options) {
    auto request = qwen::Request::try_chat(engine, HELLO, options);
    CHECK(request && request->try_submit());
    return *std::move(request);
}

void results_are_values_or_errors() {
    CHECK(qwen::version() == QWEN_VERSION && qwen::abi_version() == QWEN_ABI_VERSION);
    CHECK(qwen::try_check_abi() && contains(*qwen::try_build_info(), QWEN_VERSION));
    const auto described = qwen::Options::try_describe("generation");
    CHECK(described && contains(*described, "top_logprobs") && described->size() > 100);
    CHECK(fails(qwen::Options::try_describe("x"), QWEN_E_ARG));
    CHECK(qwen::Options::try_describe("x").value_or("none") == "none");
    CHECK(qwen::Options::try_describe("session").value_or("none") != "none");
    auto error = qwen::Options::try_make("x").error();
    const qwen::Error copy = error;
    CHECK(error.code() == QWEN_E_ARG && copy.detail() == error.detail());
}

void options_of_every_type() {
    auto options = generation("{}");
    const std::string key = "stop";
    CHECK(options.try_set("max_tokens", 5) && options.try_set("top_k", uint16_t{7}));
    CHECK(options.try_set("seed", uint64_t{INT64_MAX}) && options.try_set("top_p", 0.5F));
    CHECK(options.try_set("logprobs", true) && options.try_set(key, "end") &&
          options.try_set(key, std::string("\n")));
    const std::string json = *options.try_json();
    for (const char *part : {"\"max_tokens\":5", "\"top_k\":7", "\"seed\":9223372036854775807",
                             "\"top_p\":0.5", "\"logprobs\":true", R"("stop":["\n"])"})
        CHECK(contains(json, part));
    CHECK(fails(options.try_set("seed", UINT64_MAX), QWEN_E_OPTION));
    CHECK(fails(options.try_set("priority", UINT64_MAX), QWEN_E_OPTION));
    CHECK(fails(options.try_set("tempo", 1), QWEN_E_OPTION));
    CHECK(fails(options.try_merge("[]"), QWEN_E_ARG) && *options.try_json() == json);
}

void text_to_ids_and_back(const qwen::Tokenizer &tokenizer) {
    const std::string text = "caf\u00e9 \U0001F30D \u4f60\u597d";
    const auto ids = tokenizer.try_encode(text);
    CHECK(ids && *tokenizer.try_decode(*ids) == text);
    auto detokenizer = qwen::Detokenizer::try_make(tokenizer);
    CHECK(detokenizer);
    std::string pieces, bytes;
    for (const uint32_t id : *ids) {
        bytes += *tokenizer.try_token_bytes(id);
        pieces += *detokenizer->try_push({id});
        CHECK(text.compare(0, pieces.size(), pieces) == 0);
    }
    CHECK(pieces == text && bytes == text && detokenizer->try_finish()->empty());
    CHECK(detokenizer->try_push({tokenizer.try_encode("\U0001F30D")->front()})->empty());
    CHECK(*detokenizer->try_finish() == "\uFFFD");
    CHECK(fails(tokenizer.try_token_bytes(UINT32_MAX), QWEN_E_ARG));
    CHECK(fails(tokenizer.try_encode("\xff"), QWEN_E_UTF8));
    CHECK(contains(*tokenizer.try_info(), "im_start"));
    CHECK(tokenizer.try_render_chat(HELLO)->size() > 5);
}

void conversations(const qwen::Engine &engine) {
    const auto options = brief();
    auto session = qwen::Session::try_make(engine);
    CHECK(session && fails(session->try_reply(), QWEN_E_STATE));
    std::string streamed;
    auto reply = session->try_chat(std::string("he\0llo", 6), options,
                                   [&](qwen::EventView event) { streamed += event.text(); });
    CHECK(reply && *reply == streamed && *session->try_reply() == streamed);
    CHECK(*session->try_regenerate(options) == streamed);
    const std::string saved = *session->try_save(), messages = *session->try_messages();
    auto fork = session->try_fork();
    CHECK(fork && fork->try_set_system("Be brief.") && fork->try_edit(1, "hi"));
    CHECK(contains(*fork->try_messages(), "Be brief.") && *session->try_messages() == messages);
    CHECK(fork->try_set_system("") && fork->try_reset_system());
    CHECK(contains(*fork->try_messages(), "You are a helpful assistant."));
    CHECK(fork->try_truncate(0) && fork->try_append(HELLO) && fork->try_regenerate(options));
    CHECK(fork->try_load(saved) && *fork->try_messages() == messages);
    CHECK(fails(fork->try_load("x"), QWEN_E_CORRUPT));
    CHECK(fails(fork->try_edit(9, "x"), QWEN_E_ARG));
    CHECK(fails(fork->try_append("{}"), QWEN_E_ARG) && fails(fork->try_cancel(7), QWEN_E_ARG));
    CHECK(fails(fork->try_tool_result("x", options), QWEN_E_STATE));
}

/// What a callback may return, and a cancel from another thread.
void ends_before_the_end(const qwen::Engine &engine) {
    const auto options = endless();
    auto session = qwen::Session::try_make(engine);
    CHECK(session);
    const std::string before = *session->try_messages();
    const auto cancel = [](qwen::EventView) { return QWEN_CANCEL; };
    const auto no = [](qwen::EventView) { return false; };
    const auto nonsense = [](qwen::EventView) { return 77; };
    CHECK(fails(session->try_chat("hello", options, cancel), QWEN_E_CANCELLED));
    CHECK(fails(session->try_chat("hello", options, no), QWEN_E_CANCELLED));
    CHECK(fails(session->try_chat("hello", options, nonsense), QWEN_E_CALLBACK));
    CHECK(*session->try_messages() == before);
    std::atomic<bool> begun{false};
    std::thread other([&] {
        while (!begun)
            std::this_thread::yield();
        CHECK(session->try_cancel(QWEN_CANCEL));
    });
    CHECK(fails(session->try_chat("hello", options, [&](qwen::EventView) { begun = true; }),
                QWEN_E_CANCELLED));
    other.join();
    int told = 0;
    const auto second = [&](qwen::EventView) { return ++told < 2 ? QWEN_CONTINUE : QWEN_STOP; };
    CHECK(session->try_chat("hello", options, second) && told == 2);
    CHECK(*session->try_messages() != before);
}

void events_in_a_range(const qwen::Engine &engine) {
    auto request = qwen::Request::try_chat(engine, HELLO, brief());
    CHECK(request);
    int errors = 0;
    for (const auto &event : request->events()) {
        CHECK(fails(event, QWEN_E_STATE)); // it is not submitted
        ++errors;
    }
    CHECK(errors == 1 && request->try_submit() && fails(request->try_submit(), QWEN_E_STATE));
    std::size_t tokens = 0;
    int32_t last = 0;
    for (const auto &event : request->events()) {
        CHECK(event);
        tokens += event->tokens().size();
        last = event->kind();
    }
    CHECK(tokens == 12 && last == QWEN_EVENT_FINISHED);
    CHECK(fails(request->try_next(), QWEN_E_END));
    CHECK(request->events().begin() == request->events().end());
}

void requests(const qwen::Engine &engine) {
    auto told = submitted(engine, brief());
    std::string run;
    CHECK(told.try_run([&](qwen::EventView event) { run += event.text(); }));
    auto cancelled = submitted(engine, endless());
    CHECK(fails(cancelled.try_cancel(9), QWEN_E_ARG) && cancelled.try_cancel(QWEN_CANCEL));
    int32_t code = QWEN_OK;
    for (const auto &event : cancelled.events())
        code = event ? QWEN_OK : event.error().code();
    CHECK(code == QWEN_E_CANCELLED);
    auto alone = submitted(engine, endless());
    CHECK(alone.try_cancel(QWEN_CANCEL));
    auto last = alone.try_next();
    while (last && last->kind() != QWEN_EVENT_FAILED)
        last = alone.try_next();
    CHECK(last && last->error().code() == QWEN_E_CANCELLED && fails(alone.try_next(), QWEN_E_END));
    auto ends = submitted(engine, endless());
    CHECK(fails(ends.try_run([](qwen::EventView) { return false; }), QWEN_E_CANCELLED));
    auto queue = qwen::Queue::try_make();
    auto request = qwen::Request::try_tokens(engine, {1, 2, 3}, endless());
    CHECK(queue && request && request->try_submit(*queue, 5));
    CHECK(fails(request->try_next(0), QWEN_E_STATE)); // its events go to the queue
    auto events = queue->try_next();
    CHECK(events && events->size() > 0 && !events->empty() && (*events)[0].tag() == 5);
    CHECK((*events)[events->size()].kind() == 0 && request->try_cancel(QWEN_STOP));
    while ((events = queue->try_next()))
        for (const auto event : *events)
            CHECK(event.tag() == 5 && event.kind() != QWEN_EVENT_FAILED);
    CHECK(fails(events, QWEN_E_END));
}

void likelihoods(const qwen::Engine &engine) {
    auto options = brief();
    CHECK(options.try_merge(R"({"logprobs": true, "top_logprobs": 2})"));
    auto request = submitted(engine, options);
    std::size_t told = 0;
    for (const auto &event : request.events()) {
        CHECK(event && event->num_logprobs() == event->tokens().size());
        for (std::size_t at = 0; at < event->num_logprobs(); ++at, ++told)
            CHECK(event->logprobs(at).size() == 3 && event->logprobs(at)[0].logprob < 0);
        CHECK(event->try_logprobs_json()->front() == '[');
    }
    CHECK(told == 12);
    CHECK(contains(*engine.try_score("hello", " world"), "is_greedy"));
    CHECK(contains(*engine.try_score({1, 2}, {3}), "logprob"));
    CHECK(fails(engine.try_score("hello", ""), QWEN_E_ARG));
}

/// An object that was moved from answers QWEN_E_NULL, or nothing, and takes a new value.
void moved_from(const qwen::Engine &engine, qwen::Tokenizer tokenizer) {
    auto options = brief();
    auto request = submitted(engine, options);
    auto event = request.try_next();
    CHECK(event && event->kind() == QWEN_EVENT_STARTED);
    qwen::Event owned = *std::move(event);
    CHECK(owned.kind() == QWEN_EVENT_STARTED && event->kind() == 0 && event->text().empty());
    CHECK(event->tokens().empty() && event->bytes().empty() && event->logprobs(0).empty());
    owned = *request.try_next();
    CHECK(owned.kind() == QWEN_EVENT_DELTA);
    qwen::Event &same = owned;
    owned = std::move(same);
    CHECK(owned.kind() == QWEN_EVENT_DELTA && owned.tokens().size() > 0);
    qwen::Request taken = std::move(request);
    CHECK(fails(request.try_next(), QWEN_E_NULL) && fails(request.try_cancel(1), QWEN_E_NULL));
    CHECK(fails(*request.events().begin(), QWEN_E_NULL));
    request = std::move(taken);
    CHECK(request.try_next() && fails(taken.try_submit(), QWEN_E_NULL));
    auto session = qwen::Session::try_make(engine);
    qwen::Session kept = *std::move(session);
    CHECK(session && fails(session->try_chat("x", options), QWEN_E_NULL));
    CHECK(fails(session->try_messages(), QWEN_E_NULL) && kept.try_chat("x", options));
    qwen::Tokenizer other = std::move(tokenizer);
    CHECK(fails(tokenizer.try_encode("x"), QWEN_E_NULL) && other.try_encode("x"));
    CHECK(fails(qwen::Detokenizer::try_make(tokenizer), QWEN_E_NULL));
    qwen::Options moved = std::move(options);
    CHECK(fails(options.try_set("seed", 1), QWEN_E_NULL) && moved.try_set("seed", 1));
    auto queue = qwen::Queue::try_make();
    auto queued = qwen::Request::try_chat(engine, HELLO, moved);
    CHECK(queue && queued && queued->try_submit(*queue, 1));
    auto events = queue->try_next();
    qwen::Events list = *std::move(events);
    CHECK(list.size() > 0 && events->empty() && events->begin() == events->end());
    CHECK((*events)[0].kind() == 0);
}

} // namespace

/// Called by wrap.cpp.
void results(const char *model);

void results(const char *model) {
    results_are_values_or_errors();
    options_of_every_type();
    auto refused = qwen::Engine::try_open("no such folder");
    CHECK(fails(refused, QWEN_E_NOT_FOUND) && contains(refused.error().detail(), "no such folder"));
    CHECK(fails(qwen::Engine::try_open(model, {}, [](const auto &) { return false; }),
                QWEN_E_CANCELLED));
    auto small = qwen::Options::try_make("engine");
    CHECK(small && small->try_set("num_threads", 1) && small->try_set("max_context_tokens", 2048));
    int steps = 0;
    auto engine =
        qwen::Engine::try_open(model, *small, [&](const qwen_load_progress &) { ++steps; });
    CHECK(engine && engine->try_health() && steps > 0);
    CHECK(contains(*qwen::Engine::try_estimate(model, *small), "weight_bytes"));
    CHECK(contains(*engine->try_generation(), "temperature"));
    auto tokenizer = engine->try_tokenizer();
    CHECK(tokenizer && qwen::Tokenizer::try_open(model));
    text_to_ids_and_back(*tokenizer);
    conversations(*engine);
    ends_before_the_end(*engine);
    events_in_a_range(*engine);
    requests(*engine);
    likelihoods(*engine);
    moved_from(*engine, *std::move(tokenizer));
    qwen::Engine moved = *std::move(engine);
    CHECK(fails(engine->try_info(), QWEN_E_NULL) && moved.try_info() && moved.try_metrics());
    CHECK(moved.try_shutdown(QWEN_SHUTDOWN_CANCEL) && fails(moved.try_health(), QWEN_E_CLOSED));
}
