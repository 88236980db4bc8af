// A chat in the terminal, over qwen.hpp.
//
//   chat --model DIR [--prompt TEXT] [--system TEXT] [--seed N] [--conf KEY=VALUE]...
//        [--engine KEY=VALUE]... [--threads N]
//
// With --prompt it prints the one answer and ends; without, it reads questions and commands from
// standard input until its end. Ctrl-C stops the answer, not the program. The same history gives
// the same answer: the same seed is set before each, and --prompt without --seed always takes the
// likeliest token (temperature 0).

#include <qwen.hpp>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

constexpr const char *HELP = R"(Commands:
  :help  :h               this list
  :exit  :quit  :q        leave (as does Ctrl-D)
  :clear  :cl             clear the screen
  :clear-his  :clh        forget the conversation
  :history  :his          show the conversation
  :regenerate  :re        answer the last question anew, with the next seed
  :system [TEXT]          show or replace the system message
  :seed [N]               show or set the seed
  :conf [KEY=VALUE]       show or change sampling settings, such as temperature=0.7
  :reset-conf             take the settings back to the checkpoint's
Anything else is a question.
)";

/// Set by Ctrl-C; cleared when an answer begins.
std::atomic<bool> interrupted{false};

void on_interrupt(int) { interrupted = true; }

/// While one lives, Ctrl-C cancels the session's answer, also before its first word.
class Watch {
  public:
    explicit Watch(qwen::Session &session) : session_(session), thread_([this] { run(); }) {}
    ~Watch() {
        over_ = true;
        thread_.join();
    }

  private:
    void run() {
        while (!over_) {
            if (interrupted)
                (void)session_.try_cancel(QWEN_CANCEL);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
    }

    qwen::Session &session_;
    std::atomic<bool> over_{false};
    std::thread thread_;
};

struct Arguments {
    std::string model, prompt, system;
    std::vector<std::string> settings, engine;
    long seed = 1234;
    long threads = 0;
    bool has_prompt = false, has_seed = false;
};

const char *const USAGE = "usage: chat --model DIR [--prompt TEXT] [--system TEXT] [--seed N] "
                          "[--conf KEY=VALUE]... [--engine KEY=VALUE]... [--threads N]\n"
                          "  --conf: sampling, such as temperature=0.7   --engine: what it runs "
                          "on, such as backend=cuda\n";

[[noreturn]] void usage(const std::string &why) {
    std::cerr << "chat: " << why << "\n" << USAGE;
    std::exit(2);
}

/// A whole number from 0, or no answer.
bool parse_number(const std::string &text, long &number) {
    char *end = nullptr;
    errno = 0;
    number = std::strtol(text.c_str(), &end, 10);
    return !text.empty() && *end == '\0' && number >= 0 && errno != ERANGE;
}

Arguments parse(int argc, char **argv) {
    Arguments arguments;
    for (int at = 1; at < argc; at += 2) {
        const std::string name = argv[at];
        if (name == "--help") {
            std::cout << USAGE << HELP;
            std::exit(0);
        }
        if (at + 1 == argc)
            usage(name + " wants a value");
        const std::string value = argv[at + 1];
        if (name == "--model") {
            arguments.model = value;
        } else if (name == "--prompt") {
            arguments.prompt = value;
            arguments.has_prompt = true;
        } else if (name == "--system") {
            arguments.system = value;
        } else if (name == "--conf") {
            arguments.settings.push_back(value);
        } else if (name == "--engine") {
            arguments.engine.push_back(value);
        } else if (name == "--seed") {
            arguments.has_seed = true;
            if (!parse_number(value, arguments.seed))
                usage("--seed wants a number");
        } else if (name == "--threads") {
            if (!parse_number(value, arguments.threads))
                usage("--threads wants a number");
        } else {
            usage(name + " is not known");
        }
    }
    if (arguments.model.empty())
        usage("--model is missing");
    return arguments;
}

std::string strip(const std::string &text) {
    const char *spaces = " \t\r\n";
    const auto first = text.find_first_not_of(spaces);
    if (first == std::string::npos)
        return "";
    return text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

/// Sets `key`; a value that is no JSON, or not of the key's kind, is taken as text. Throws what the
/// library says of it.
void apply(qwen::Options &options, const std::string &key, const std::string &value) {
    // Keys are plain names: one with a quotation mark is unknown either way.
    if (key.find_first_of("\"\\") != std::string::npos)
        throw qwen::Error(QWEN_E_OPTION, "no option is called " + key, "{}");
    const auto merged = options.try_merge("{\"" + key + "\": " + value + "}");
    if (merged)
        return;
    const auto set = options.try_set(key, value);
    // Of a value that is JSON the first says more; of one that is not, only the second does.
    if (!set)
        throw merged.error().code() == QWEN_E_ARG ? set.error() : merged.error();
}

/// One progress line on standard error, rewritten in place where that is a terminal.
class Progress {
  public:
    ~Progress() {
        if (percent_ >= 0 && terminal_)
            std::fputs("\r\033[K", stderr);
    }
    int32_t operator()(const qwen_load_progress &progress) {
        const uint64_t total = progress.total_bytes == 0 ? 1 : progress.total_bytes;
        const int percent = static_cast<int>(100.0 * static_cast<double>(progress.done_bytes) /
                                             static_cast<double>(total));
        if (percent != percent_ && (terminal_ || percent == 100)) {
            const double mib = static_cast<double>(progress.done_bytes) / (1024 * 1024);
            std::fprintf(stderr, "%sloading: %3d %%, %.0f MiB%s", terminal_ ? "\r" : "", percent,
                         mib, terminal_ ? "" : "\n");
        }
        percent_ = percent;
        return interrupted ? QWEN_CANCEL : QWEN_CONTINUE;
    }

  private:
    bool terminal_ = isatty(STDERR_FILENO) == 1;
    int percent_ = -1;
};

class Chat {
  public:
    explicit Chat(const Arguments &arguments)
        : engine_(open(arguments)), session_(engine_, session_options(arguments)),
          system_(arguments.system), seed_(arguments.seed) {
        if (arguments.has_prompt && !arguments.has_seed)
            options_.set("temperature", 0);
        for (const auto &setting : arguments.settings)
            configure(setting);
    }

    /// Answers one question; false if that failed.
    bool answer(const std::string &question) {
        std::string reply;
        const bool done = stream(seed_, reply, [&](auto &options, auto &&on_event) {
            return session_.chat(question, options, on_event);
        });
        if (!done)
            return false;
        turns_.emplace_back(question, reply);
        attempts_ = 0;
        return true;
    }

    /// Carries out one line of input; false at the wish to leave.
    bool obey(const std::string &line) {
        const auto space = line.find(' ');
        const std::string command = line.substr(0, space);
        const std::string rest = space == std::string::npos ? "" : strip(line.substr(space));
        if (command == ":exit" || command == ":quit" || command == ":q")
            return false;
        if (command == ":help" || command == ":h") {
            std::cout << HELP;
        } else if (command == ":clear" || command == ":cl") {
            std::cout << "\033[2J\033[H";
        } else if (command == ":clear-his" || command == ":clh") {
            session_.truncate(0);
            turns_.clear();
            std::cout << "The conversation is forgotten.\n";
        } else if (command == ":history" || command == ":his") {
            show_history();
        } else if (command == ":regenerate" || command == ":re") {
            regenerate();
        } else if (command == ":system") {
            set_system(rest);
        } else if (command == ":seed") {
            set_seed(rest);
        } else if (command == ":conf") {
            show_or_configure(rest);
        } else if (command == ":reset-conf") {
            options_ = qwen::Options::generation();
            std::cout << "The settings are the checkpoint's.\n";
        } else if (command[0] == ':') {
            std::cerr << "chat: " << command << " is no command; :help lists them\n";
        } else {
            answer(line);
        }
        return true;
    }

  private:
    static qwen::Engine open(const Arguments &arguments) {
        auto options = qwen::Options::engine();
        options.set("num_threads", arguments.threads);
        for (const std::string &setting : arguments.engine) {
            const auto equals = setting.find('=');
            if (equals == std::string::npos)
                usage("--engine wants KEY=VALUE");
            apply(options, setting.substr(0, equals), setting.substr(equals + 1));
        }
        return qwen::Engine::open(arguments.model, options, Progress{});
    }

    static qwen::Options session_options(const Arguments &arguments) {
        auto options = qwen::Options::session();
        if (!arguments.system.empty())
            options.set("system", arguments.system);
        return options;
    }

    /// Prints a reply as it is made, and keeps it in `reply`; false if it failed.
    template <typename Generate> bool stream(long seed, std::string &reply, Generate &&generate) {
        interrupted = false;
        qwen::Options options = qwen::Options::generation().merge(options_.json());
        options.set("seed", seed);
        try {
            const Watch watch(session_);
            reply = generate(options, [](qwen::EventView event) {
                std::cout << event.text() << std::flush;
                return interrupted ? QWEN_CANCEL : QWEN_CONTINUE;
            });
            std::cout << std::endl;
            return true;
        } catch (const qwen::Error &error) {
            std::cout << std::endl;
            if (error.code() != QWEN_E_CANCELLED)
                std::cerr << "chat: " << error.what() << "\n";
            else
                std::cerr << "(stopped; this answer is not remembered)\n";
            return false;
        }
    }

    void regenerate() {
        std::string reply;
        const long room = std::numeric_limits<long>::max() - seed_;
        const long seed = ++attempts_ <= room ? seed_ + attempts_ : attempts_ - room;
        const bool done = stream(seed, reply, [&](auto &options, auto &&on_event) {
            return session_.regenerate(options, on_event);
        });
        if (done)
            turns_.back().second = reply;
    }

    void show_history() const {
        if (!system_.empty())
            std::cout << "System: " << system_ << "\n";
        if (turns_.empty())
            std::cout << "Nothing has been said.\n";
        for (const auto &[question, reply] : turns_) {
            std::cout << "User: " << question << "\nQwen: " << reply << "\n";
        }
    }

    void set_system(const std::string &text) {
        if (!text.empty()) {
            session_.set_system(text);
            system_ = text;
        }
        std::cout << "System: " << (system_.empty() ? "(the format's own)" : system_) << "\n";
    }

    void set_seed(const std::string &text) {
        long seed = 0;
        if (!text.empty() && !parse_number(text, seed)) {
            std::cerr << "chat: a seed is a whole number from 0\n";
            return;
        }
        if (!text.empty())
            seed_ = seed;
        std::cout << "Seed: " << seed_ << "\n";
    }

    void show_or_configure(const std::string &setting) {
        if (!setting.empty())
            configure(setting);
        std::cout << "The checkpoint's: " << engine_.generation() << "\nYours: " << options_.json()
                  << "\n";
    }

    /// `key=value`. Throws what the library says of it.
    void configure(const std::string &setting) {
        const auto equals = setting.find('=');
        if (equals == std::string::npos) {
            throw qwen::Error(QWEN_E_ARG, "a setting is KEY=VALUE, such as temperature=0.7", "{}");
        }
        const std::string key = strip(setting.substr(0, equals));
        const std::string value = strip(setting.substr(equals + 1));
        if (key == "seed")
            return set_seed(value);
        apply(options_, key, value);
    }

    qwen::Engine engine_;
    qwen::Session session_;
    qwen::Options options_ = qwen::Options::generation();
    std::string system_;
    long seed_;
    /// How often the last question was answered anew.
    long attempts_ = 0;
    std::vector<std::pair<std::string, std::string>> turns_;
};

/// Reads a line; at a terminal, Ctrl-C only begins a new one.
bool read_line(std::string &line) {
    const bool terminal = isatty(STDIN_FILENO) == 1;
    while (true) {
        interrupted = false;
        if (terminal)
            std::cout << "\nUser> " << std::flush;
        if (std::getline(std::cin, line))
            return true;
        if (!interrupted || !terminal)
            return false;
        // The read was broken off by Ctrl-C: that is not the end of the input.
        std::cin.clear();
        std::clearerr(stdin);
    }
}

void converse(Chat &chat) {
    std::cout << "A chat. :help lists the commands.\n";
    std::string line;
    while (read_line(line)) {
        line = strip(line);
        if (line.empty()) {
            std::cerr << "chat: say something, or :help\n";
            continue;
        }
        try {
            if (!chat.obey(line))
                return;
        } catch (const qwen::Error &error) {
            std::cerr << "chat: " << error.what() << "\n";
        }
    }
}

} // namespace

int main(int argc, char **argv) {
    const Arguments arguments = parse(argc, argv);
    struct sigaction action = {};
    action.sa_handler = on_interrupt; // Without SA_RESTART, so that waiting for a line ends.
    sigaction(SIGINT, &action, nullptr);
    try {
        qwen::check_abi();
        Chat chat(arguments);
        if (!arguments.has_prompt)
            return converse(chat), 0;
        const std::string prompt = strip(arguments.prompt);
        if (prompt.empty())
            usage("--prompt is empty");
        return chat.answer(prompt) ? 0 : 1;
    } catch (const qwen::Error &error) {
        std::cerr << "chat: " << error.what() << "\n";
        return 1;
    }
}
