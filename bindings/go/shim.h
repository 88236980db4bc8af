/* shim.h: the few C functions that make crossing from Go cheap and callbacks safe.
 *
 * Not an interface: only this package's Go files include it. A crossing costs more than the call
 * behind it, so an event is read whole in one; and a callback's `user` is a number here (a
 * cgo.Handle), which Go may keep in no pointer. */
#ifndef QWEN_GO_SHIM_H
#define QWEN_GO_SHIM_H

#include <qwen.h>
#include <stdint.h>

/* An event's fields. The pointers live as long as the event. */
typedef struct {
    const qwen_event *event;
    uint64_t tag;
    int32_t kind, finish;
    uint32_t choice;
    const char *text;
    uint64_t text_len;
    const uint8_t *bytes;
    uint64_t bytes_len;
    const uint32_t *ids;
    uint64_t num_ids;
    uint64_t num_logprobs;
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
    const qwen_error *error;
    /* The call that the event tells of; form is 0 unless it is complete. */
    const char *tool_id, *tool_name, *tool_arguments;
    uint64_t tool_id_len, tool_name_len, tool_arguments_len;
    int32_t tool_form;
} qwen_go_event;

/* qwen_queue_next, with up to `max_events` of the list's events read into `views`. */
int32_t qwen_go_queue_next(qwen_queue *queue, uint64_t max_events, int64_t timeout_ms,
                           qwen_events **events, qwen_go_event *views, uint64_t *num_views,
                           qwen_error **err);

/* The calls with callbacks; `user` is the cgo.Handle that the callback gets. */
int32_t qwen_go_open(const char *folder, uint64_t folder_len, const qwen_options *options,
                     uintptr_t user, qwen_engine **engine, qwen_error **err);
int32_t qwen_go_session_chat(qwen_session *session, const char *text, uint64_t text_len,
                             const qwen_options *options, uintptr_t user, qwen_error **err);
int32_t qwen_go_session_tool_result(qwen_session *session, const char *result, uint64_t result_len,
                                    const qwen_options *options, uintptr_t user, qwen_error **err);
int32_t qwen_go_session_regenerate(qwen_session *session, const qwen_options *options,
                                   uintptr_t user, qwen_error **err);
int32_t qwen_go_set_log(qwen_options *options, int32_t level, uintptr_t user, qwen_error **err);

#endif
