/* Asks a model one question and prints the answer as it is made:
 *
 *   chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] [--temperature X] [--seed N]
 *
 * Without --temperature the likeliest token is always taken, so that the answer is always the same.
 * chat.cpp, chat.rs and, in bindings, the examples of Go and Java are this program, too. */
#include <qwen.h>
#include <stdio.h>
#include <string.h>

static const char *const USAGE = "usage: chat --model DIR --prompt TEXT [--system TEXT] "
                                 "[--max-tokens N] [--temperature X] [--seed N]";

struct flags {
    const char *model, *prompt;
    qwen_options *session, *generation;
};

/* Prints what is new; ends the reply where nobody takes it. */
static int32_t on_event(const qwen_event *event, void *out) {
    uint64_t len = 0;
    const char *text = qwen_event_text(event, &len);
    const int printed = fwrite(text, 1, len, out) == len && fflush(out) == 0;
    return printed ? QWEN_CONTINUE : QWEN_CANCEL;
}

/* The library says what is wrong with a number, or that it is none. */
static int32_t set_number(qwen_options *options, const char *key, const char *value,
                          qwen_error **error) {
    char json[100];
    const int len = snprintf(json, sizeof json, "{\"%s\": %s}", key, value);
    const int fits = len > 0 && len < (int)sizeof json;
    return fits ? qwen_options_merge_json(options, json, QWEN_CSTR, error) : QWEN_E_ARG;
}

/* Takes one flag; QWEN_E_ARG without an error where there is no such flag. */
static int32_t set(struct flags *flags, const char *name, const char *value, qwen_error **error) {
    if (strcmp(name, "--model") == 0)
        flags->model = value;
    else if (strcmp(name, "--prompt") == 0)
        flags->prompt = value;
    else if (strcmp(name, "--system") == 0)
        return qwen_options_set_str(flags->session, "system", QWEN_CSTR, value, QWEN_CSTR, error);
    else if (strcmp(name, "--max-tokens") == 0)
        return set_number(flags->generation, "max_tokens", value, error);
    else if (strcmp(name, "--temperature") == 0)
        return set_number(flags->generation, "temperature", value, error);
    else if (strcmp(name, "--seed") == 0)
        return set_number(flags->generation, "seed", value, error);
    else
        return QWEN_E_ARG;
    return QWEN_OK;
}

static int32_t parse(struct flags *flags, int argc, char **argv, qwen_error **error) {
    int at;
    for (at = 1; at < argc; at += 2)
        if (at + 1 == argc || set(flags, argv[at], argv[at + 1], error) != QWEN_OK)
            return QWEN_E_ARG;
    return flags->model != NULL && flags->prompt != NULL ? QWEN_OK : QWEN_E_ARG;
}

int main(int argc, char **argv) {
    struct flags flags = {NULL, NULL, NULL, NULL};
    qwen_engine *engine = NULL;
    qwen_session *session = NULL;
    qwen_error *error = NULL;
    const int failed =
        qwen_check_abi(QWEN_ABI_VERSION, &error) ||
        qwen_options_new("session", QWEN_CSTR, &flags.session, &error) ||
        qwen_options_new("generation", QWEN_CSTR, &flags.generation, &error) ||
        qwen_options_set_i64(flags.generation, "temperature", QWEN_CSTR, 0, &error) ||
        parse(&flags, argc, argv, &error) ||
        qwen_engine_open(flags.model, QWEN_CSTR, NULL, NULL, NULL, &engine, &error) ||
        qwen_session_new(engine, flags.session, &session, &error) ||
        qwen_session_chat(session, flags.prompt, QWEN_CSTR, flags.generation, on_event, stdout,
                          &error);
    if (failed)
        fprintf(stderr, "%s\n", error == NULL ? USAGE : qwen_error_message(error));
    else
        printf("\n");
    qwen_error_free(error);
    qwen_session_free(session);
    qwen_engine_free(engine);
    qwen_options_free(flags.session);
    qwen_options_free(flags.generation);
    return failed;
}
