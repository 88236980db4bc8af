// page.cpp: the code that bindings/cpp/README.md shows, in functions that run. Usage: page MODEL.
// tests/readme.rs compiles and runs it, and sees that the page shows nothing else.
#include <qwen.hpp>

#include <cstdlib>
#include <future>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

void must(bool holds, const char *what) {
    if (!holds) {
        std::cerr << "not so: " << what << "\n";
        std::exit(1);
    }
}

void stream(const qwen::Engine &engine) {
    qwen::Session session(engine);
    auto options = qwen::Options::generation().set("max_tokens", 20).set("temperature", 0.7);
    const std::string reply = session.chat("My name is Ada.", options, [](qwen::EventView event) {
        std::cout << event.text() << std::flush; // whole characters, as they come
    });
    must(reply == session.reply(), "the reply is kept");
}

void pull(const qwen::Engine &engine, const qwen::Options &options) {
    auto request =
        qwen::Request::chat(engine, R"([{"role": "user", "content": "Hello!"}])", options);
    request.submit();
    for (const auto &event : request) {
        std::cout << event.text();
        if (event.kind() == QWEN_EVENT_FINISHED)
            std::cout << "\n" << event.usage().completion_tokens << " tokens\n";
    }
}

void cancel(const qwen::Engine &engine, const qwen::Options &endless) {
    qwen::Session session(engine);
    std::promise<void> begun;
    std::thread other([&] {
        begun.get_future().wait();
        session.cancel(QWEN_CANCEL); // any thread, also while the session is used
    });
    bool first = true;
    const auto reply = session.try_chat("Count to a thousand.", endless, [&](qwen::EventView) {
        if (std::exchange(first, false))
            begun.set_value();
    });
    if (first)
        begun.set_value(); // it failed before it began
    other.join();
    must(!reply && reply.error().code() == QWEN_E_CANCELLED, "it was cancelled");
}

void leave(const qwen::Engine &engine, const qwen::Options &endless) {
    qwen::Session session(engine);
    int pieces = 0;
    session.chat("Count to a thousand.", endless, [&](qwen::EventView) {
        return ++pieces < 5 ? QWEN_CONTINUE : QWEN_STOP; // what there is, is the reply
    });
}

void many(const qwen::Engine &engine, const qwen::Options &options) {
    std::vector<std::string> questions = {"Hello!", "What is a tree?", "Who are you?"};
    std::vector<std::thread> threads;
    for (const auto &question : questions)
        threads.emplace_back([&engine, &options, question] {
            qwen::Session(engine).chat(question, options); // one batch computes them all
        });
    for (auto &thread : threads)
        thread.join();
}

void queue(const qwen::Engine &engine, const qwen::Options &options) {
    qwen::Queue queue;
    std::vector<qwen::Request> requests;
    for (uint64_t tag = 0; tag < 3; ++tag) {
        requests.push_back(qwen::Request::tokens(engine, {1, 2, 3}, options));
        requests.back().submit(queue, tag);
    }
    std::vector<std::string> replies(3);
    while (auto events = queue.try_next())
        for (const auto event : *events)
            replies[event.tag()] += event.text();
}

void errors(const std::string &model) {
    try {
        auto engine = qwen::Engine::open(model);
        engine.health();
    } catch (const qwen::Error &error) {
        switch (error.code()) {
        case QWEN_E_OOM_HOST:
        case QWEN_E_OOM_DEVICE:
            std::cerr << "it does not fit: " << error.detail() << "\n";
            break;
        default:
            std::cerr << qwen_status_name(error.code()) << ": " << error.what() << "\n";
        }
    }
}

bool results(const std::string &model) {
    auto engine = qwen::Engine::try_open(model);
    if (!engine) {
        std::cerr << engine.error().what() << "\n";
        return false;
    }
    auto session = qwen::Session::try_make(*engine);
    return session && session->try_set_system("Be brief.");
}

} // namespace

int main(int argc, char **argv) {
    must(argc == 2, "an argument");
    qwen::check_abi();
    const auto engine = qwen::Engine::open(argv[1]);
    const auto few = qwen::Options::generation().set("max_tokens", 8);
    const auto endless =
        qwen::Options::generation().set("max_tokens", 1000).set("ignore_eos", true);
    stream(engine);
    pull(engine, few);
    cancel(engine, endless);
    leave(engine, endless);
    many(engine, few);
    queue(engine, few);
    errors("/no/such/folder");
    must(!results("/no/such/folder") && results(argv[1]), "results");
    return 0;
}
