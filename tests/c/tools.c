/* tools.c: tools offered and called, results given back; a reply of a given format. A tiny model calls no tool by itself: a chosen
 * tool and a biased token make it. Usage: tools MODEL */
#include "model.h"

#define TOOLS                                                                                      \
    "{\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"find\"}}]," \
    " \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"find\"}}}"

/* What a callback saw of one reply. */
typedef struct {
    int deltas, calls, form, finish;
    char name[16], arguments[16], id[32];
} seen;

static void copy(char *to, size_t size, const char *from, uint64_t length) {
    CHECK(strlen(from) == length && length < size);
    memcpy(to, from, length + 1);
}

static int32_t watch(const qwen_event *event, void *user) {
    seen *all = user;
    uint64_t length = 0;
    const int is_call = qwen_event_kind(event) == QWEN_EVENT_TOOL_CALL;
    CHECK((qwen_event_tool_arguments_form(event) != 0) == is_call);
    all->deltas += qwen_event_kind(event) == QWEN_EVENT_TOOL_DELTA;
    all->finish = qwen_event_finish_reason(event);
    if (!is_call)
        return QWEN_CONTINUE;
    all->calls += 1;
    all->form = qwen_event_tool_arguments_form(event);
    const char *text = qwen_event_tool_name(event, &length);
    copy(all->name, sizeof all->name, text, length);
    text = qwen_event_tool_arguments(event, &length);
    copy(all->arguments, sizeof all->arguments, text, length);
    text = qwen_event_tool_id(event, &length);
    copy(all->id, sizeof all->id, text, length);
    return QWEN_CONTINUE;
}

static uint32_t id_of(const qwen_engine *engine, const char *letter) {
    qwen_tokenizer *tokenizer = NULL;
    qwen_tokens *tokens = NULL;
    CHECK_OK(qwen_tokenizer_of_engine(engine, &tokenizer, &err));
    CHECK_OK(qwen_tokenizer_encode(tokenizer, letter, 1, 0, &tokens, &err));
    const uint32_t id = qwen_tokens_data(tokens)[0];
    qwen_tokens_free(tokens), qwen_tokenizer_free(tokenizer);
    return id;
}

/* Options under which the model says the digit 5, three times. */
static qwen_options *fives(uint32_t five) {
    char bias[64];
    qwen_options *options = long_reply(3, 1);
    snprintf(bias, sizeof bias, "{\"logit_bias\": {\"%u\": 100}}", (unsigned)five);
    CHECK_OK(qwen_options_merge_json(options, bias, QWEN_CSTR, &err));
    CHECK_OK(qwen_options_merge_json(options, TOOLS, QWEN_CSTR, &err));
    return options;
}

static void a_call_is_told(const qwen_engine *engine, qwen_options *options) {
    const char *messages = "[{\"role\": \"user\", \"content\": \"Where?\"}]";
    qwen_request *request = NULL;
    seen all = {0};
    CHECK_OK(qwen_request_new_chat(engine, messages, QWEN_CSTR, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_OK(qwen_request_run(request, watch, &all, &err));
    CHECK(all.deltas > 0 && all.calls == 1 && strcmp(all.name, "find") == 0);
    CHECK(strcmp(all.arguments, "555") == 0 && all.form == QWEN_ARGUMENTS_JSON);
    CHECK(all.finish == QWEN_FINISH_LENGTH && strncmp(all.id, "call_", 5) == 0);
    qwen_request_free(request);
}

static void a_result_goes_back(const qwen_engine *engine, qwen_options *options, uint32_t five) {
    char part[64];
    qwen_session *session = new_session(engine);
    qwen_buf *json = NULL;
    seen all = {0}, again = {0};
    CHECK_OK(qwen_options_set_i64(options, "stop_token_ids", QWEN_CSTR, five, &err));
    CHECK_FAILS(QWEN_E_STATE,
                qwen_session_tool_result(session, "x", 1, options, NULL, NULL, &err));
    CHECK_OK(qwen_session_chat(session, "Where?", QWEN_CSTR, options, watch, &all, &err));
    CHECK(all.calls == 1 && all.finish == QWEN_FINISH_TOOL_CALLS);
    CHECK(strcmp(all.arguments, "") == 0 && all.form == QWEN_ARGUMENTS_TEXT);
    CHECK_OK(qwen_session_tool_result(session, "Here.", QWEN_CSTR, options, watch, &again, &err));
    CHECK(again.calls == 1 && strcmp(again.id, all.id) != 0);
    CHECK_OK(qwen_session_messages_json(session, &json, &err));
    snprintf(part, sizeof part, "\"tool_call_id\":\"%s\"", all.id);
    CHECK(strstr(qwen_buf_data(json), part) != NULL);
    qwen_session *other = new_session(engine);
    CHECK_OK(qwen_session_append_json(other, qwen_buf_data(json), qwen_buf_len(json), &err));
    qwen_session_free(other), qwen_session_free(session), qwen_buf_free(json);
}

static void bad_tools_are_named(qwen_options *options) {
    const char *bad = "{\"tools\": [{\"function\": {\"name\": \"a b\"}}]}";
    qwen_error *error = NULL;
    CHECK(qwen_options_merge_json(options, bad, QWEN_CSTR, &error) == QWEN_E_OPTION);
    CHECK_DETAIL(error, "\"key\":\"tools\"");
    CHECK_DETAIL(error, "tools[0].function.name");
    qwen_error_free(error);
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_str(options, "tools", 5, "[", 1, &err));
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_str(options, "tool_choice", 11, "any", 3, &err));
    CHECK_OK(qwen_options_set_str(options, "tools", 5, "[{\"name\": \"f\"}]", QWEN_CSTR, &err));
    CHECK_OK(qwen_options_set_str(options, "tool_choice", 11, "none", 4, &err));
}

/* A reply of a format that the model would never keep by itself. */
static void a_format_is_kept(const qwen_engine *engine) {
    const char *format = "{\"response_format\": {\"type\": \"regex\", \"regex\": \"[ab]{4}\"}}";
    const char *bad = "{\"response_format\": {\"type\": \"poem\"}}";
    qwen_options *options = long_reply(50, 1);
    qwen_session *session = new_session(engine);
    qwen_buf *reply = NULL;
    CHECK_OK(qwen_options_merge_json(options, format, QWEN_CSTR, &err));
    CHECK_OK(qwen_session_chat(session, "Sing.", QWEN_CSTR, options, NULL, NULL, &err));
    CHECK_OK(qwen_session_reply(session, &reply, &err));
    CHECK(qwen_buf_len(reply) == 4 && strspn(qwen_buf_data(reply), "ab") == 4);
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_merge_json(options, bad, QWEN_CSTR, &err));
    qwen_buf_free(reply), qwen_session_free(session), qwen_options_free(options);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    qwen_engine *engine = open_engine(argv[1], SMALL);
    const uint32_t five = id_of(engine, "5");
    qwen_options *options = fives(five);
    a_call_is_told(engine, options);
    a_result_goes_back(engine, options, five);
    bad_tools_are_named(options);
    a_format_is_kept(engine);
    qwen_options_free(options), qwen_engine_free(engine);
    return 0;
}
