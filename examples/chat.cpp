// Asks a model one question and prints the answer as it is made: chat.c in C++.
//
//   chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] [--temperature X] [--seed N]
//
// terminal.cpp is a chat of more than one question.
#include <qwen.hpp>

#include <iostream>
#include <optional>
#include <string>

namespace {

constexpr const char *USAGE = "usage: chat --model DIR --prompt TEXT [--system TEXT] "
                              "[--max-tokens N] [--temperature X] [--seed N]\n";

struct Flags {
    std::optional<std::string> model, prompt;
    qwen::Options session = qwen::Options::session();
    qwen::Options generation = qwen::Options::generation().set("temperature", 0);
};

/// Sets an option to a number. The library says what is wrong with it, or that it is none.
void set_number(qwen::Options &options, const std::string &key, const std::string &value) {
    options.merge("{\"" + key + "\": " + value + "}");
}

/// False if the arguments are not those of USAGE.
bool parse(Flags &flags, int argc, char **argv) {
    for (int at = 1; at < argc; at += 2) {
        if (at + 1 == argc)
            return false;
        const std::string name = argv[at], value = argv[at + 1];
        if (name == "--model")
            flags.model = value;
        else if (name == "--prompt")
            flags.prompt = value;
        else if (name == "--system")
            flags.session.set("system", value);
        else if (name == "--max-tokens")
            set_number(flags.generation, "max_tokens", value);
        else if (name == "--temperature")
            set_number(flags.generation, "temperature", value);
        else if (name == "--seed")
            set_number(flags.generation, "seed", value);
        else
            return false;
    }
    return flags.model && flags.prompt;
}

} // namespace

int main(int argc, char **argv) try {
    qwen::check_abi();
    Flags flags;
    if (!parse(flags, argc, argv))
        return std::cerr << USAGE, 1;
    const auto engine = qwen::Engine::open(*flags.model);
    qwen::Session session(engine, flags.session);
    session.chat(*flags.prompt, flags.generation, [](qwen::EventView event) {
        return bool(std::cout << event.text() << std::flush);
    });
    std::cout << "\n";
} catch (const qwen::Error &error) {
    return std::cerr << error.what() << "\n", 1;
}
