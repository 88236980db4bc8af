/* panic.c: a panic inside every export is a status, prints nothing, and leaves the object usable.
 * Linked with the library of `make hooks-lib`. Usage: panic MODEL */
#include "model.h"

/* Of the cargo feature `test-hooks`: the next call of the export with this name panics. */
void qwen_test_panic(const char *name);

/* `name` panics with arguments that would otherwise fail in another way. */
#define PANICS(name, ...)                                                                          \
    do {                                                                                           \
        qwen_error *err = NULL;                                                                    \
        qwen_test_panic(#name);                                                                    \
        const int32_t status_ = name(__VA_ARGS__, &err);                                           \
        check_error(__FILE__, __LINE__, QWEN_E_PANIC, status_, err);                               \
        CHECK(strstr(qwen_error_message(err), "injected into " #name) != NULL);                    \
        CHECK(strstr(qwen_error_message(err), "hooks.rs:") != NULL);                               \
        qwen_error_free(err);                                                                      \
        qwen_test_panic(#name);                                                                    \
        CHECK(name(__VA_ARGS__, NULL) == QWEN_E_PANIC);                                            \
        CHECK(name(__VA_ARGS__, NULL) != QWEN_E_PANIC); /* only the one call */                    \
        ++num_tested;                                                                              \
    } while (0)

/* `name` has no status: a panic gives its neutral answer. */
#define NEUTRAL(name, condition)                                                                   \
    do {                                                                                           \
        qwen_test_panic(#name);                                                                    \
        CHECK(condition);                                                                          \
        ++num_tested;                                                                              \
    } while (0)

static int num_tested;

static void without_events(void) {
    PANICS(qwen_event_usage, NULL, NULL);
    PANICS(qwen_event_logprob, NULL, 0, 0, NULL);
    PANICS(qwen_event_logprobs_json, NULL, NULL);
    NEUTRAL(qwen_event_tag, qwen_event_tag(NULL) == 0);
    NEUTRAL(qwen_event_kind, qwen_event_kind(NULL) == 0);
    NEUTRAL(qwen_event_choice, qwen_event_choice(NULL) == 0);
    NEUTRAL(qwen_event_text, strcmp(qwen_event_text(NULL, NULL), "") == 0);
    NEUTRAL(qwen_event_bytes, qwen_event_bytes(NULL, NULL) == NULL);
    NEUTRAL(qwen_event_tokens, qwen_event_tokens(NULL, NULL) == NULL);
    NEUTRAL(qwen_event_finish_reason, qwen_event_finish_reason(NULL) == 0);
    NEUTRAL(qwen_event_num_logprobs, qwen_event_num_logprobs(NULL) == 0);
    NEUTRAL(qwen_event_num_top_logprobs, qwen_event_num_top_logprobs(NULL, 0) == 0);
    NEUTRAL(qwen_event_tool_id, strcmp(qwen_event_tool_id(NULL, NULL), "") == 0);
    NEUTRAL(qwen_event_tool_name, strcmp(qwen_event_tool_name(NULL, NULL), "") == 0);
    NEUTRAL(qwen_event_tool_arguments, strcmp(qwen_event_tool_arguments(NULL, NULL), "") == 0);
    NEUTRAL(qwen_event_tool_arguments_form, qwen_event_tool_arguments_form(NULL) == 0);
    NEUTRAL(qwen_event_error, qwen_event_error(NULL) == NULL);
}

static void without_objects(void) {
    PANICS(qwen_check_abi, 0);
    PANICS(qwen_build_info_json, NULL);
    PANICS(qwen_options_new, NULL, 0, NULL);
    PANICS(qwen_options_set_i64, NULL, NULL, 0, 0);
    PANICS(qwen_options_set_f64, NULL, NULL, 0, 0);
    PANICS(qwen_options_set_str, NULL, NULL, 0, NULL, 0);
    PANICS(qwen_options_merge_json, NULL, NULL, 0);
    PANICS(qwen_options_get_json, NULL, NULL);
    PANICS(qwen_options_describe_json, NULL, 0, NULL);
    PANICS(qwen_options_set_log, NULL, 0, NULL, NULL, NULL);
    PANICS(qwen_engine_open, NULL, 0, NULL, NULL, NULL, NULL);
    PANICS(qwen_engine_estimate_json, NULL, 0, NULL, NULL);
    PANICS(qwen_engine_info_json, NULL, NULL);
    PANICS(qwen_engine_metrics_json, NULL, NULL);
    PANICS(qwen_engine_metrics_prometheus, NULL, NULL, 0, NULL);
    PANICS(qwen_engine_generation_json, NULL, NULL);
    PANICS(qwen_engine_health, NULL);
    PANICS(qwen_engine_shutdown, NULL, 0, 0);
    PANICS(qwen_session_new, NULL, NULL, NULL);
    PANICS(qwen_session_chat, NULL, NULL, 0, NULL, NULL, NULL);
    PANICS(qwen_session_regenerate, NULL, NULL, NULL, NULL);
    PANICS(qwen_session_tool_result, NULL, NULL, 0, NULL, NULL, NULL);
    PANICS(qwen_session_cancel, NULL, 0);
    PANICS(qwen_session_reply, NULL, NULL);
    PANICS(qwen_session_messages_json, NULL, NULL);
    PANICS(qwen_session_append_json, NULL, NULL, 0);
    PANICS(qwen_session_truncate, NULL, 0);
    PANICS(qwen_session_set_system, NULL, NULL, 0);
    PANICS(qwen_session_edit, NULL, 0, NULL, 0);
    PANICS(qwen_session_fork, NULL, NULL);
    PANICS(qwen_session_save, NULL, NULL);
    PANICS(qwen_session_load, NULL, NULL, 0);
    PANICS(qwen_request_new_chat, NULL, NULL, 0, NULL, NULL);
    PANICS(qwen_request_new_tokens, NULL, NULL, 0, NULL, NULL);
    PANICS(qwen_request_submit, NULL, NULL, 0);
    PANICS(qwen_request_next, NULL, 0, NULL);
    PANICS(qwen_request_run, NULL, NULL, NULL);
    PANICS(qwen_request_cancel, NULL, 0);
    PANICS(qwen_score, NULL, NULL, 0, NULL, 0, NULL, NULL);
    PANICS(qwen_score_tokens, NULL, NULL, 0, NULL, 0, NULL, NULL);
    PANICS(qwen_embed, NULL, NULL, 0, 0, 0, NULL, NULL);
    PANICS(qwen_embed_tokens, NULL, NULL, 0, 0, 0, NULL, NULL);
    PANICS(qwen_queue_new, NULL);
    PANICS(qwen_queue_next, NULL, 0, 0, NULL);
    PANICS(qwen_tokenizer_open, NULL, 0, NULL);
    PANICS(qwen_tokenizer_of_engine, NULL, NULL);
    PANICS(qwen_tokenizer_encode, NULL, NULL, 0, 0, NULL);
    PANICS(qwen_tokenizer_decode, NULL, NULL, 0, 0, NULL);
    PANICS(qwen_tokenizer_token_bytes, NULL, 0, NULL);
    PANICS(qwen_tokenizer_render_chat_json, NULL, NULL, 0, 0, NULL);
    PANICS(qwen_tokenizer_info_json, NULL, NULL);
    PANICS(qwen_detok_new, NULL, NULL);
    PANICS(qwen_detok_push, NULL, NULL, 0, NULL);
    PANICS(qwen_detok_finish, NULL, NULL);
}

static void neutral_answers(void) {
    qwen_error *error = NULL;
    CHECK(qwen_check_abi(0, &error) == QWEN_E_ABI_MISMATCH);
    NEUTRAL(qwen_error_code, qwen_error_code(error) == QWEN_E_PANIC);
    NEUTRAL(qwen_error_message, strcmp(qwen_error_message(error), "") == 0);
    NEUTRAL(qwen_error_detail_json, strcmp(qwen_error_detail_json(error), "{}") == 0);
    qwen_error_free(error);
    NEUTRAL(qwen_buf_data, strcmp(qwen_buf_data(NULL), "") == 0);
    NEUTRAL(qwen_buf_len, qwen_buf_len(NULL) == 0);
    NEUTRAL(qwen_tokens_data, qwen_tokens_data(NULL) == NULL);
    NEUTRAL(qwen_tokens_len, qwen_tokens_len(NULL) == 0);
    NEUTRAL(qwen_floats_data, qwen_floats_data(NULL) == NULL);
    NEUTRAL(qwen_floats_len, qwen_floats_len(NULL) == 0);
    NEUTRAL(qwen_events_len, qwen_events_len(NULL) == 0);
    NEUTRAL(qwen_events_at, qwen_events_at(NULL, 0) == NULL);
}

/* A panic below a callback, then in the session itself; the session goes on. */
static int32_t panic_inside(const qwen_event *event, void *user) {
    (void)event;
    qwen_test_panic("qwen_session_truncate");
    CHECK_FAILS(QWEN_E_PANIC, qwen_session_truncate(user, 0, &err));
    return QWEN_CONTINUE;
}

static void with_objects(const char *folder) {
    qwen_engine *engine = open_engine(folder, SMALL);
    qwen_session *session = new_session(engine);
    qwen_options *options = long_reply(10, 1);
    CHECK_OK(qwen_session_chat(session, "x", 1, options, panic_inside, session, &err));
    qwen_test_panic("qwen_session_chat");
    CHECK_FAILS(QWEN_E_PANIC, qwen_session_chat(session, "x", 1, options, NULL, NULL, &err));
    CHECK_OK(qwen_session_chat(session, "x", 1, options, NULL, NULL, &err));
    NEUTRAL(qwen_session_free, (qwen_session_free(session), 1));
    qwen_options_free(options), qwen_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    without_events();
    without_objects();
    neutral_answers();
    with_objects(argv[1]);
    /* All of tests/abi/symbols.txt but 12 *_free and three that read constants. */
    CHECK(num_tested == 83);
    return 0;
}
