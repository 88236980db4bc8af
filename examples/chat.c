/* Asks a model one question and prints the answer as it is made: chat MODEL QUESTION */
#include <qwen.h>
#include <stdio.h>

static int32_t on_event(const qwen_event *event, void *user) {
    return fputs(qwen_event_text(event, NULL), user) < 0 ? QWEN_CANCEL : QWEN_CONTINUE;
}

int main(int argc, char **argv) {
    qwen_engine *engine = NULL;
    qwen_options *greedy = NULL;
    qwen_session *session = NULL;
    qwen_error *error = NULL;
    int failed = argc != 3 || setvbuf(stdout, NULL, _IONBF, 0) ||
                 qwen_engine_open(argv[1], QWEN_CSTR, NULL, NULL, NULL, &engine, &error) ||
                 qwen_options_new("generation", QWEN_CSTR, &greedy, &error) ||
                 qwen_options_set_i64(greedy, "temperature", QWEN_CSTR, 0, &error) ||
                 qwen_session_new(engine, NULL, &session, &error) ||
                 qwen_session_chat(session, argv[2], QWEN_CSTR, greedy, on_event, stdout, &error);
    fprintf(failed ? stderr : stdout, "%s\n", qwen_error_message(error));
    qwen_error_free(error);
    qwen_session_free(session);
    qwen_options_free(greedy);
    return qwen_engine_free(engine), failed;
}
