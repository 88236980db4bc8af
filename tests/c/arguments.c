/* arguments.c: NULLs and bad arguments to every function. Needs no model.
 *
 * Out-variables begin as POISON, so a function that forgets one is found. */
#include "check.h"

static char poison_byte;
#define POISON ((void *)&poison_byte)

/* Declares `name`, which must be NULL after the calls. */
#define OUT(type, name) type *name = POISON

static int32_t on_event(const qwen_event *event, void *user) {
    (void)event, (void)user;
    return QWEN_CONTINUE;
}

static void frees_and_accessors_take_null(void) {
    uint64_t length = 7;
    qwen_error_free(NULL), qwen_buf_free(NULL), qwen_tokens_free(NULL), qwen_options_free(NULL);
    qwen_engine_free(NULL), qwen_session_free(NULL), qwen_event_free(NULL), qwen_events_free(NULL);
    qwen_request_free(NULL), qwen_queue_free(NULL), qwen_tokenizer_free(NULL),
        qwen_detok_free(NULL);
    CHECK(qwen_error_code(NULL) == QWEN_OK);
    CHECK(strcmp(qwen_error_message(NULL), "") == 0);
    CHECK(strcmp(qwen_error_detail_json(NULL), "{}") == 0);
    CHECK(strcmp(qwen_buf_data(NULL), "") == 0 && qwen_buf_len(NULL) == 0);
    CHECK(qwen_tokens_data(NULL) == NULL && qwen_tokens_len(NULL) == 0);
    CHECK(qwen_floats_data(NULL) == NULL && qwen_floats_len(NULL) == 0);
    CHECK(qwen_event_tag(NULL) == 0 && qwen_event_kind(NULL) == 0 && qwen_event_choice(NULL) == 0);
    CHECK(strcmp(qwen_event_text(NULL, &length), "") == 0 && length == 0);
    CHECK(qwen_event_bytes(NULL, NULL) == NULL && qwen_event_tokens(NULL, NULL) == NULL);
    CHECK(qwen_event_finish_reason(NULL) == 0 && qwen_event_error(NULL) == NULL);
    CHECK(qwen_event_num_logprobs(NULL) == 0 && qwen_event_num_top_logprobs(NULL, 0) == 0);
    CHECK(strcmp(qwen_event_tool_id(NULL, &length), "") == 0 && length == 0);
    CHECK(strcmp(qwen_event_tool_name(NULL, NULL), "") == 0);
    CHECK(strcmp(qwen_event_tool_arguments(NULL, NULL), "") == 0);
    CHECK(qwen_event_tool_arguments_form(NULL) == 0);
    CHECK(qwen_events_len(NULL) == 0 && qwen_events_at(NULL, 0) == NULL);
}

/* Every function that makes something: no place for it, then no handle to make it from. */
static void makers_take_null(void) {
    OUT(qwen_buf, buf);
    OUT(qwen_tokens, tokens);
    OUT(qwen_session, session);
    OUT(qwen_request, request);
    OUT(qwen_tokenizer, tokenizer);
    OUT(qwen_detok, detok);
    OUT(qwen_event, event);
    OUT(qwen_events, events);
    OUT(qwen_floats, floats);
    CHECK_FAILS(QWEN_E_NULL, qwen_build_info_json(NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_new("engine", 6, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_describe_json("engine", 6, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_open("x", 1, NULL, NULL, NULL, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_estimate_json("x", 1, NULL, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_open("x", 1, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_queue_new(NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_get_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_info_json(NULL, &buf, &err));
    CHECK(buf == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_metrics_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_metrics_prometheus(NULL, NULL, 0, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_save(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_generation_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_event_logprobs_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_score(NULL, "x", 1, "y", 1, NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_score_tokens(NULL, NULL, 0, NULL, 0, NULL, &buf, &err));
    CHECK(buf == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_embed(NULL, "x", 1, QWEN_POOL_LAST, 0, NULL, &floats, &err));
    CHECK(floats == NULL);
    floats = POISON;
    CHECK_FAILS(QWEN_E_NULL, qwen_embed_tokens(NULL, NULL, 0, 1, 0, NULL, &floats, &err));
    CHECK(floats == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_session_new(NULL, NULL, &session, &err));
    CHECK(session == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_session_reply(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_messages_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_request_new_chat(NULL, "[]", 2, NULL, &request, &err));
    CHECK(request == NULL);
    request = POISON;
    CHECK_FAILS(QWEN_E_NULL, qwen_request_new_tokens(NULL, NULL, 0, NULL, &request, &err));
    CHECK(request == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_request_next(NULL, 0, &event, &err));
    CHECK(event == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_queue_next(NULL, 1, 0, &events, &err));
    CHECK(events == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_of_engine(NULL, &tokenizer, &err));
    CHECK(tokenizer == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_encode(NULL, "x", 1, 0, &tokens, &err));
    CHECK(tokens == NULL);
    tokens = POISON;
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_render_chat_json(NULL, "[]", 2, 0, &tokens, &err));
    CHECK(tokens == NULL);
    buf = POISON;
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_decode(NULL, NULL, 0, 0, &buf, &err));
    CHECK(buf == NULL);
    buf = POISON;
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_token_bytes(NULL, 0, &buf, &err));
    CHECK(buf == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_tokenizer_info_json(NULL, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_detok_new(NULL, &detok, &err));
    CHECK(detok == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_detok_push(NULL, NULL, 0, &buf, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_detok_finish(NULL, &buf, &err));
}

/* Every function that changes something. */
static void doers_take_null(void) {
    qwen_usage usage = {sizeof usage, 0, 0, 0, 0};
    qwen_logprob logprob = {sizeof logprob, 0, 0, NULL, 0};
    CHECK_FAILS(QWEN_E_NULL, qwen_options_set_i64(NULL, "seed", 4, 1, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_set_f64(NULL, "top_p", 5, 1, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_set_str(NULL, "stop", 4, "x", 1, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_merge_json(NULL, "{}", 2, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_options_set_log(NULL, 1, NULL, NULL, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_health(NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_engine_shutdown(NULL, QWEN_SHUTDOWN_DRAIN, 0, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_chat(NULL, "x", 1, NULL, on_event, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_regenerate(NULL, NULL, on_event, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_tool_result(NULL, "x", 1, NULL, on_event, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_cancel(NULL, QWEN_STOP, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_append_json(NULL, "[]", 2, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_truncate(NULL, 0, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_set_system(NULL, NULL, 0, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_edit(NULL, 0, "x", 1, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_session_load(NULL, NULL, 0, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_request_submit(NULL, NULL, 0, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_request_run(NULL, on_event, NULL, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_request_cancel(NULL, QWEN_STOP, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_event_usage(NULL, &usage, &err));
    CHECK_FAILS(QWEN_E_NULL, qwen_event_logprob(NULL, 0, 0, &logprob, &err));
    /* Without a place for the error, the status says it all. */
    CHECK(qwen_engine_health(NULL, NULL) == QWEN_E_NULL);
}

static void texts_are_checked(void) {
    OUT(qwen_options, options);
    OUT(qwen_engine, engine);
    qwen_error *error = NULL;
    CHECK_FAILS(QWEN_E_NULL, qwen_options_new(NULL, 3, &options, &err));
    CHECK(options == NULL);
    CHECK_FAILS(QWEN_E_NULL, qwen_options_new(NULL, QWEN_CSTR, &options, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_options_new(NULL, 0, &options, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_options_new("motor", 5, &options, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_options_new("engine", UINT64_MAX - 1, &options, &err));
    CHECK(qwen_options_new("eng\xff", 4, &options, &error) == QWEN_E_UTF8);
    CHECK_DETAIL(error, "\"offset\":3");
    qwen_error_free(error);
    CHECK_FAILS(QWEN_E_ARG, qwen_engine_open("", 0, NULL, NULL, NULL, &engine, &err));
    CHECK(engine == NULL);
    CHECK_FAILS(QWEN_E_ARG, qwen_engine_open("a\0b", 3, NULL, NULL, NULL, &engine, &err));
    CHECK_FAILS(QWEN_E_NOT_FOUND, qwen_engine_open("\xff", 1, NULL, NULL, NULL, &engine, &err));
}

static void options_name_the_key(void) {
    qwen_options *generation = NULL, *session = NULL;
    qwen_engine *engine = NULL;
    qwen_buf *json = NULL;
    qwen_error *error = NULL;
    CHECK_OK(qwen_options_new("generation", QWEN_CSTR, &generation, &err));
    CHECK_OK(qwen_options_new("session", QWEN_CSTR, &session, &err));
    CHECK(qwen_options_set_i64(generation, "tempo", 5, 1, &error) == QWEN_E_OPTION);
    CHECK_DETAIL(error, "\"key\":\"tempo\"");
    qwen_error_free(error);
    CHECK(qwen_options_set_f64(generation, "top_p", 5, 1.5, &error) == QWEN_E_OPTION);
    CHECK_DETAIL(error, "\"key\":\"top_p\"");
    qwen_error_free(error);
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_str(generation, "seed", 4, "x", 1, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_options_merge_json(generation, "[1]", QWEN_CSTR, &err));
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_merge_json(generation, "{\"seed\": 5, \"top_p\": 7}",
                                                       QWEN_CSTR, &err));
    CHECK_OK(qwen_options_get_json(generation, &json, &err));
    CHECK(strcmp(qwen_buf_data(json), "{}") == 0); /* nothing of the refused merge stays */
    qwen_buf_free(json);
    CHECK_OK(qwen_options_merge_json(generation, "{\"max_completion_tokens\": 5, \"stop\": \"x\"}",
                                     QWEN_CSTR, &err));
    CHECK_OK(qwen_options_get_json(generation, &json, &err));
    CHECK(strcmp(qwen_buf_data(json), "{\"max_tokens\":5,\"stop\":[\"x\"]}") == 0);
    qwen_buf_free(json);
    /* A number is told as it was given, to its last bit. */
    CHECK_OK(
        qwen_options_merge_json(generation, "{\"top_p\": 1e-30, \"stop\": null}", QWEN_CSTR, &err));
    CHECK_OK(qwen_options_get_json(generation, &json, &err));
    CHECK(strcmp(qwen_buf_data(json), "{\"max_tokens\":5,\"top_p\":1e-30}") == 0);
    qwen_buf_free(json);
    /* Options of one kind where another kind goes. */
    CHECK_FAILS(QWEN_E_ARG, qwen_engine_open("x", 1, session, NULL, NULL, &engine, &err));
    qwen_options_free(generation);
    qwen_options_free(session);
}

static void on_line(int32_t level, const char *target, const char *line, uint64_t length,
                    void *user) {
    (void)level, (void)target, (void)line, (void)length, (void)user;
}

static void count(void *user) { ++*(int *)user; }

static void log_hook_is_destroyed_once(void) {
    int destroyed = 0;
    qwen_options *options = NULL, *generation = NULL;
    CHECK_OK(qwen_options_new("engine", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_new("generation", QWEN_CSTR, &generation, &err));
    CHECK_FAILS(QWEN_E_NULL,
                qwen_options_set_log(options, QWEN_LOG_INFO, NULL, &destroyed, count, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_options_set_log(options, 0, on_line, &destroyed, count, &err));
    CHECK_FAILS(QWEN_E_ARG,
                qwen_options_set_log(generation, QWEN_LOG_INFO, on_line, &destroyed, count, &err));
    CHECK(destroyed == 0); /* a call that fails leaves `user` to the caller */
    CHECK_OK(qwen_options_set_log(options, QWEN_LOG_INFO, on_line, &destroyed, count, &err));
    CHECK_OK(qwen_options_set_log(options, QWEN_LOG_DEBUG, on_line, &destroyed, count, &err));
    CHECK(destroyed == 1);
    qwen_options_free(options);
    CHECK(destroyed == 2);
    qwen_options_free(generation);
}

static void names_and_versions(void) {
    qwen_buf *json = NULL;
    const char *kinds[] = {"engine", "generation", "session"};
    CHECK(strcmp(qwen_status_name(QWEN_E_UTF8), "QWEN_E_UTF8") == 0);
    CHECK(strcmp(qwen_status_name(-5), "QWEN_E_UNKNOWN") == 0);
    CHECK_OK(qwen_check_abi(QWEN_ABI_VERSION, &err));
    CHECK_FAILS(QWEN_E_ABI_MISMATCH, qwen_check_abi(QWEN_ABI_VERSION + 1, &err));
    CHECK(strcmp(qwen_version(), QWEN_VERSION) == 0);
    CHECK_OK(qwen_build_info_json(&json, &err));
    CHECK(qwen_buf_len(json) == strlen(qwen_buf_data(json)));
    qwen_buf_free(json);
    for (int at = 0; at < 3; ++at) {
        CHECK_OK(qwen_options_describe_json(kinds[at], QWEN_CSTR, &json, &err));
        CHECK(strstr(qwen_buf_data(json), kinds[at]) != NULL);
        qwen_buf_free(json);
    }
}

int main(void) {
    frees_and_accessors_take_null();
    makers_take_null();
    doers_take_null();
    texts_are_checked();
    options_name_the_key();
    log_hook_is_destroyed_once();
    names_and_versions();
    return 0;
}
