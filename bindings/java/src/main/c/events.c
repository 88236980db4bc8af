/* events.c: events as bytes, and the queue that they come from.
 *
 * A crossing costs more than the call behind it, so all events that are there cross in one array.
 * Numbers are in the machine's byte order; Event.java reads them. Of each event:
 *
 *     size  what
 *     8     tag
 *     4 x 4 kind, choice, finish reason, form of a call's arguments
 *     8 x 3 tokens: of the prompt, of the reply, of the prompt from the cache
 *     4 x 4 bytes of the text; of what the model wrote (-1: the same); ids; log-probabilities
 *     4 x 3 bytes of a call's id, name, arguments
 *     4 x 3 an error's code, bytes of its message and of its detail
 *     ...   the same in this order: text, written, ids (4 each), id, name, arguments, message,
 *           detail, and of each log-probability the number of its alternatives (4), then itself and
 *           these: id (4), logarithm (8), number of bytes (4), bytes */
#include "glue.h"
#include <stdlib.h>
#include <string.h>

static void put(qj_writer *out, const void *data, uint64_t len) {
    if (out->failed || len == 0)
        return;
    if (len > INT32_MAX || out->len + len > INT32_MAX) {
        out->failed = true;
        return;
    }
    if (out->len + len > out->capacity) {
        size_t capacity = out->capacity < 512 ? 512 : out->capacity * 2;
        while (capacity < out->len + len)
            capacity *= 2;
        unsigned char *grown = realloc(out->data, capacity);
        if (grown == NULL) {
            out->failed = true;
            return;
        }
        out->data = grown;
        out->capacity = capacity;
    }
    memcpy(out->data + out->len, data, (size_t)len);
    out->len += (size_t)len;
}

static void put_i32(qj_writer *out, int64_t value) {
    const int32_t number = (int32_t)value;
    put(out, &number, sizeof number);
}

static void put_i64(qj_writer *out, uint64_t value) { put(out, &value, sizeof value); }

static void put_logprob(qj_writer *out, const qwen_event *event, uint64_t index, uint64_t rank) {
    qwen_logprob one = {sizeof one, 0, 0, NULL, 0};
    if (qwen_event_logprob(event, index, rank, &one, NULL) != QWEN_OK)
        out->failed = true;
    put_i32(out, one.id);
    put(out, &one.logprob, sizeof one.logprob);
    put_i32(out, (int64_t)one.bytes_len);
    put(out, one.bytes, one.bytes_len);
}

static void put_logprobs(qj_writer *out, const qwen_event *event, uint64_t count) {
    for (uint64_t index = 0; index < count; index++) {
        const uint64_t top = qwen_event_num_top_logprobs(event, index);
        put_i32(out, (int64_t)top);
        for (uint64_t rank = 0; rank <= top; rank++)
            put_logprob(out, event, index, rank);
    }
}

void qj_write_event(qj_writer *out, const qwen_event *event) {
    uint64_t text_len, bytes_len, num_ids, id_len, name_len, arguments_len;
    qwen_usage usage = {sizeof usage, 0, 0, 0, 0};
    const char *text = qwen_event_text(event, &text_len);
    const uint8_t *bytes = qwen_event_bytes(event, &bytes_len);
    const uint32_t *ids = qwen_event_tokens(event, &num_ids);
    const char *id = qwen_event_tool_id(event, &id_len);
    const char *name = qwen_event_tool_name(event, &name_len);
    const char *arguments = qwen_event_tool_arguments(event, &arguments_len);
    const qwen_error *error = qwen_event_error(event);
    const char *message = qwen_error_message(error), *detail = qwen_error_detail_json(error);
    const uint64_t num_logprobs = qwen_event_num_logprobs(event);
    const bool verbatim =
        bytes_len == text_len && (text_len == 0 || memcmp(bytes, text, (size_t)text_len) == 0);
    if (qwen_event_usage(event, &usage, NULL) != QWEN_OK)
        out->failed = true;
    put_i64(out, qwen_event_tag(event));
    put_i32(out, qwen_event_kind(event));
    put_i32(out, qwen_event_choice(event));
    put_i32(out, qwen_event_finish_reason(event));
    put_i32(out, qwen_event_tool_arguments_form(event));
    put_i64(out, usage.prompt_tokens);
    put_i64(out, usage.completion_tokens);
    put_i64(out, usage.cached_tokens);
    put_i32(out, (int64_t)text_len);
    put_i32(out, verbatim ? -1 : (int64_t)bytes_len);
    put_i32(out, (int64_t)num_ids);
    put_i32(out, (int64_t)num_logprobs);
    put_i32(out, (int64_t)id_len);
    put_i32(out, (int64_t)name_len);
    put_i32(out, (int64_t)arguments_len);
    put_i32(out, qwen_error_code(error));
    put_i32(out, error == NULL ? 0 : (int64_t)strlen(message));
    put_i32(out, error == NULL ? 0 : (int64_t)strlen(detail));
    put(out, text, text_len);
    put(out, bytes, verbatim ? 0 : bytes_len);
    put(out, ids, num_ids * sizeof *ids);
    put(out, id, id_len);
    put(out, name, name_len);
    put(out, arguments, arguments_len);
    put(out, message, error == NULL ? 0 : strlen(message));
    put(out, detail, error == NULL ? 0 : strlen(detail));
    put_logprobs(out, event, num_logprobs);
}

jbyteArray qj_give_written(JNIEnv *env, qj_writer *out) {
    jbyteArray array = NULL;
    if (out->failed)
        qj_throw_no_memory(env);
    else
        array = qj_give_bytes(env, out->data, out->len);
    free(out->data);
    return array;
}

NATIVE(jlong, queueNew)(JNIEnv *env, jclass class) {
    (void)class;
    qwen_queue *queue = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_queue_new(&queue, &err);
    return qj_ok(env, status, err) ? NUMBER(queue) : 0;
}

/* The events that are there; NULL if none came in time, nothing at all if none can come. */
NATIVE(jbyteArray, queueNext)(JNIEnv *env, jclass class, jlong queue, jint max, jlong timeout_ms) {
    (void)class;
    qwen_events *events = NULL;
    qwen_error *err = NULL;
    int32_t status =
        qwen_queue_next(OBJECT(qwen_queue, queue), (uint64_t)max, timeout_ms, &events, &err);
    if (status == QWEN_E_TIMEOUT || status == QWEN_E_END) {
        qwen_error_free(err);
        return status == QWEN_E_END ? qj_give_bytes(env, "", 0) : NULL;
    }
    if (!qj_ok(env, status, err))
        return NULL;
    qj_writer out = {NULL, 0, 0, false};
    for (uint64_t i = 0; i < qwen_events_len(events); i++)
        qj_write_event(&out, qwen_events_at(events, i));
    qwen_events_free(events);
    return qj_give_written(env, &out);
}

NATIVE(void, queueFree)(JNIEnv *env, jclass class, jlong queue) {
    (void)env, (void)class;
    qwen_queue_free(OBJECT(qwen_queue, queue));
}
