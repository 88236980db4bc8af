/* shim.c: see shim.h. The functions called go... are Go's, in callbacks.go. */
#include "shim.h"
#include "_cgo_export.h"

static void read_event(const qwen_event *event, qwen_go_event *view) {
    qwen_usage usage = {sizeof usage, 0, 0, 0, 0};
    view->event = event;
    view->tag = qwen_event_tag(event);
    view->kind = qwen_event_kind(event);
    view->choice = qwen_event_choice(event);
    view->text = qwen_event_text(event, &view->text_len);
    view->bytes = qwen_event_bytes(event, &view->bytes_len);
    view->ids = qwen_event_tokens(event, &view->num_ids);
    view->num_logprobs = qwen_event_num_logprobs(event);
    view->finish = qwen_event_finish_reason(event);
    view->error = qwen_event_error(event);
    qwen_event_usage(event, &usage, NULL);
    view->prompt_tokens = usage.prompt_tokens;
    view->completion_tokens = usage.completion_tokens;
    view->cached_tokens = usage.cached_tokens;
    view->tool_id = qwen_event_tool_id(event, &view->tool_id_len);
    view->tool_name = qwen_event_tool_name(event, &view->tool_name_len);
    view->tool_arguments = qwen_event_tool_arguments(event, &view->tool_arguments_len);
    view->tool_form = qwen_event_tool_arguments_form(event);
}

int32_t qwen_go_queue_next(qwen_queue *queue, uint64_t max_events, int64_t timeout_ms,
                           qwen_events **events, qwen_go_event *views, uint64_t *num_views,
                           qwen_error **err) {
    int32_t status = qwen_queue_next(queue, max_events, timeout_ms, events, err);
    *num_views = qwen_events_len(*events);
    for (uint64_t i = 0; i < *num_views; i++)
        read_event(qwen_events_at(*events, i), &views[i]);
    return status;
}

static int32_t on_event(const qwen_event *event, void *user) {
    qwen_go_event view;
    read_event(event, &view);
    goQwenEvent(&view, (uintptr_t)user);
    return QWEN_CONTINUE;
}

static int32_t on_progress(const qwen_load_progress *progress, void *user) {
    return goQwenProgress(progress->done_bytes, progress->total_bytes, (uintptr_t)user);
}

static void on_log(int32_t level, const char *target, const char *message, uint64_t message_len,
                   void *user) {
    goQwenLog(level, (char *)target, (char *)message, message_len, (uintptr_t)user);
}

static void on_log_end(void *user) { goQwenLogEnd((uintptr_t)user); }

int32_t qwen_go_open(const char *folder, uint64_t folder_len, const qwen_options *options,
                     uintptr_t user, qwen_engine **engine, qwen_error **err) {
    return qwen_engine_open(folder, folder_len, options, user ? on_progress : NULL, (void *)user,
                            engine, err);
}

int32_t qwen_go_session_chat(qwen_session *session, const char *text, uint64_t text_len,
                             const qwen_options *options, uintptr_t user, qwen_error **err) {
    return qwen_session_chat(session, text, text_len, options, on_event, (void *)user, err);
}

int32_t qwen_go_session_tool_result(qwen_session *session, const char *result, uint64_t result_len,
                                    const qwen_options *options, uintptr_t user, qwen_error **err) {
    return qwen_session_tool_result(session, result, result_len, options, on_event, (void *)user,
                                    err);
}

int32_t qwen_go_session_regenerate(qwen_session *session, const qwen_options *options,
                                   uintptr_t user, qwen_error **err) {
    return qwen_session_regenerate(session, options, on_event, (void *)user, err);
}

int32_t qwen_go_set_log(qwen_options *options, int32_t level, uintptr_t user, qwen_error **err) {
    return qwen_options_set_log(options, level, on_log, (void *)user, on_log_end, err);
}
