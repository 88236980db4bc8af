/* request.c: requests, completion queues, engine calls with a model. Usage: request MODEL */
#include "model.h"
#include "utf8.h"

#define HELLO "[{\"role\": \"user\", \"content\": \"hello\"}]"

static qwen_request *new_request(const qwen_engine *engine, const qwen_options *options) {
    qwen_request *request = NULL;
    CHECK_OK(qwen_request_new_chat(engine, HELLO, QWEN_CSTR, options, &request, &err));
    return request;
}

static void events_come_in_order(const qwen_engine *engine) {
    qwen_options *options = long_reply(40, 3);
    qwen_request *request = new_request(engine, options);
    qwen_event *event = NULL;
    int32_t kind = 0, deltas = 0;
    CHECK_FAILS(QWEN_E_STATE, qwen_request_next(request, 0, &event, &err));
    CHECK_FAILS(QWEN_E_STATE, qwen_request_cancel(request, QWEN_STOP, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_FAILS(QWEN_E_STATE, qwen_request_submit(request, NULL, 0, &err));
    while (kind != QWEN_EVENT_FINISHED) {
        uint64_t bytes = 0;
        CHECK_OK(qwen_request_next(request, -1, &event, &err));
        CHECK(kind != 0 || qwen_event_kind(event) == QWEN_EVENT_STARTED);
        kind = qwen_event_kind(event);
        deltas += kind == QWEN_EVENT_DELTA;
        CHECK(is_utf8(qwen_event_text(event, &bytes), bytes));
        if (kind == QWEN_EVENT_FINISHED)
            CHECK(qwen_event_finish_reason(event) == QWEN_FINISH_LENGTH);
        qwen_event_free(event);
    }
    CHECK(deltas > 0);
    CHECK_FAILS(QWEN_E_END, qwen_request_next(request, -1, &event, &err));
    CHECK(event == NULL);
    CHECK_OK(qwen_request_cancel(request, QWEN_CANCEL, &err)); /* too late: nothing happens */
    qwen_request_free(request), qwen_options_free(options);
}

/* What `run` is told, joined. */
typedef struct {
    qwen_request *request;
    int32_t inner_status;
    char bytes[4096];
    uint64_t num_bytes;
    uint32_t ids[512];
    uint64_t num_ids;
} told;

static int32_t collect(const qwen_event *event, void *user) {
    told *all = user;
    uint64_t bytes = 0, ids = 0;
    const uint8_t *raw = qwen_event_bytes(event, &bytes);
    const uint32_t *tokens = qwen_event_tokens(event, &ids);
    qwen_event *inner = NULL;
    CHECK(all->num_bytes + bytes <= sizeof all->bytes && all->num_ids + ids <= 512);
    if (bytes)
        memcpy(all->bytes + all->num_bytes, raw, bytes);
    if (ids)
        memcpy(all->ids + all->num_ids, tokens, ids * sizeof *tokens);
    all->num_bytes += bytes, all->num_ids += ids;
    all->inner_status = qwen_request_next(all->request, 0, &inner, NULL);
    return QWEN_CONTINUE;
}

/* The bytes of the events are the bytes of their ids, and a detokeniser says the same. */
static void run_loses_nothing(const qwen_engine *engine) {
    qwen_options *options = long_reply(300, 4);
    qwen_tokenizer *tokenizer = NULL;
    qwen_detok *detok = NULL;
    qwen_buf *decoded = NULL, *lossy = NULL, *piece = NULL;
    uint64_t at = 0;
    static told all;
    all.request = new_request(engine, options);
    CHECK_OK(qwen_request_submit(all.request, NULL, 0, &err));
    CHECK_OK(qwen_request_run(all.request, collect, &all, &err));
    CHECK(all.inner_status == QWEN_E_REENTRANT && all.num_ids == 300);
    CHECK_OK(qwen_tokenizer_of_engine(engine, &tokenizer, &err));
    CHECK_OK(qwen_tokenizer_decode(tokenizer, all.ids, all.num_ids, 0, &decoded, &err));
    CHECK(qwen_buf_len(decoded) == all.num_bytes);
    CHECK(memcmp(qwen_buf_data(decoded), all.bytes, all.num_bytes) == 0);
    CHECK_OK(qwen_tokenizer_decode(tokenizer, all.ids, all.num_ids, QWEN_DECODE_LOSSY_TEXT, &lossy,
                                   &err));
    CHECK_OK(qwen_detok_new(tokenizer, &detok, &err));
    qwen_tokenizer_free(tokenizer);
    for (uint64_t id = 0; id <= all.num_ids; ++id) {
        if (id < all.num_ids)
            CHECK_OK(qwen_detok_push(detok, &all.ids[id], 1, &piece, &err));
        else
            CHECK_OK(qwen_detok_finish(detok, &piece, &err));
        CHECK(is_utf8(qwen_buf_data(piece), qwen_buf_len(piece)));
        CHECK(at + qwen_buf_len(piece) <= qwen_buf_len(lossy));
        CHECK(memcmp(qwen_buf_data(lossy) + at, qwen_buf_data(piece), qwen_buf_len(piece)) == 0);
        at += qwen_buf_len(piece);
        qwen_buf_free(piece);
    }
    CHECK(at == qwen_buf_len(lossy));
    qwen_buf_free(decoded), qwen_buf_free(lossy), qwen_detok_free(detok);
    qwen_request_free(all.request), qwen_options_free(options);
}

/* Many requests, one queue: every tag ends once; stopped and cancelled ones say so. */
static void a_queue_serves_many(const qwen_engine *engine) {
    enum { REQUESTS = 24 };
    qwen_options *options = long_reply(60, 5);
    qwen_options *endless = long_reply(1500, 5); /* none ends before it is cancelled */
    qwen_queue *queue = NULL;
    qwen_events *events = NULL;
    qwen_event *event = NULL;
    qwen_request *requests[REQUESTS];
    int32_t ends[REQUESTS] = {0}, status = QWEN_OK;
    CHECK_OK(qwen_queue_new(&queue, &err));
    CHECK_FAILS(QWEN_E_END, qwen_queue_next(queue, 1, -1, &events, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_queue_next(queue, 0, -1, &events, &err));
    for (uint64_t tag = 0; tag < REQUESTS; ++tag) {
        requests[tag] = new_request(engine, tag % 3 ? endless : options);
        CHECK_OK(qwen_request_submit(requests[tag], queue, tag, &err));
        CHECK_FAILS(QWEN_E_STATE, qwen_request_next(requests[tag], 0, &event, &err));
        if (tag % 3 == 1)
            CHECK_OK(qwen_request_cancel(requests[tag], QWEN_STOP, &err));
        if (tag % 3 == 2)
            CHECK_OK(qwen_request_cancel(requests[tag], QWEN_CANCEL, &err));
    }
    while ((status = qwen_queue_next(queue, 5, 60000, &events, NULL)) == QWEN_OK) {
        CHECK(qwen_events_len(events) >= 1 && qwen_events_len(events) <= 5);
        CHECK(qwen_events_at(events, qwen_events_len(events)) == NULL);
        for (uint64_t at = 0; at < qwen_events_len(events); ++at) {
            const qwen_event *news = qwen_events_at(events, at);
            const int32_t kind = qwen_event_kind(news);
            if (kind != QWEN_EVENT_FINISHED && kind != QWEN_EVENT_FAILED)
                continue;
            CHECK(ends[qwen_event_tag(news)] == 0);
            ends[qwen_event_tag(news)] = kind == QWEN_EVENT_FINISHED
                                             ? 1000 + qwen_event_finish_reason(news)
                                             : qwen_error_code(qwen_event_error(news));
        }
        qwen_events_free(events);
    }
    CHECK(status == QWEN_E_END);
    for (int tag = 0; tag < REQUESTS; ++tag) {
        const int32_t wanted[] = {1000 + QWEN_FINISH_LENGTH, 1000 + QWEN_FINISH_CANCELLED,
                                  QWEN_E_CANCELLED};
        CHECK(ends[tag] == wanted[tag % 3]);
        qwen_request_free(requests[tag]);
    }
    qwen_queue_free(queue), qwen_options_free(options), qwen_options_free(endless);
}

/* The caller's engine may go first, even before the submit. */
static void a_request_holds_its_engine(const char *folder) {
    qwen_engine *engine = open_engine(folder, SMALL);
    qwen_options *options = long_reply(20, 7);
    qwen_request *request = new_request(engine, options);
    qwen_engine_free(engine), qwen_options_free(options);
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_OK(qwen_request_run(request, NULL, NULL, &err));
    qwen_request_free(request);
}

static void limits_are_typed(const char *folder) {
    qwen_engine *engine = open_engine(folder, "{\"num_threads\": 1, \"kv_cache_tokens\": 256, "
                                              "\"max_context_tokens\": 128, "
                                              "\"max_queue_requests\": 1}");
    static uint32_t ids[200];
    qwen_options *options = long_reply(100, 6);
    qwen_request *request = NULL, *many[16];
    qwen_error *error = NULL;
    int refused = 0;
    CHECK_OK(qwen_request_new_tokens(engine, ids, 200, options, &request, &err));
    CHECK(qwen_request_submit(request, NULL, 0, &error) == QWEN_E_CONTEXT_FULL);
    CHECK_DETAIL(error, "\"available_tokens\":");
    qwen_error_free(error), qwen_request_free(request);
    for (int at = 0; at < 16; ++at) {
        CHECK_OK(qwen_request_new_tokens(engine, ids, 20, options, &many[at], &err));
        const int32_t status = qwen_request_submit(many[at], NULL, 0, NULL);
        CHECK(status == QWEN_OK || status == QWEN_E_QUEUE_FULL);
        refused += status == QWEN_E_QUEUE_FULL;
    }
    CHECK(refused > 0);
    CHECK_OK(qwen_engine_shutdown(engine, QWEN_SHUTDOWN_CANCEL, -1, &err));
    CHECK_FAILS(QWEN_E_CLOSED, qwen_engine_health(engine, &err));
    for (int at = 0; at < 16; ++at)
        qwen_request_free(many[at]);
    CHECK_FAILS(QWEN_E_ARG, qwen_engine_shutdown(engine, 9, 0, &err));
    qwen_engine_free(engine), qwen_options_free(options);
}

/* The deadline is the request's own: it fails, and says after how long. */
static void a_deadline_is_typed(const qwen_engine *engine) {
    qwen_options *options = long_reply(1900, 3);
    qwen_error *error = NULL;
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_i64(options, "deadline_ms", 11, -1, &err));
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_i64(options, "priority", 8, 1001, &err));
    CHECK_OK(qwen_options_merge_json(options,
                                     "{\"deadline_ms\": 5, \"queue_timeout_ms\": 60000, "
                                     "\"priority\": -3}",
                                     QWEN_CSTR, &err));
    qwen_request *request = new_request(engine, options);
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK(qwen_request_run(request, NULL, NULL, &error) == QWEN_E_DEADLINE);
    CHECK_DETAIL(error, "\"deadline_ms\":5");
    qwen_error_free(error), qwen_request_free(request), qwen_options_free(options);
}

/* n replies come apart by their number, each with an end of its own; then the request's. */
static void choices_come_apart(const qwen_engine *engine) {
    qwen_options *options = long_reply(15, 3);
    qwen_event *event = NULL;
    uint64_t num_ids[3] = {0}, ended = 0;
    int32_t kind = 0;
    CHECK_OK(qwen_options_set_i64(options, "n", 1, 3, &err));
    qwen_request *request = new_request(engine, options);
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    while (kind != QWEN_EVENT_FINISHED) {
        qwen_usage usage = {sizeof usage, 0, 0, 0, 0};
        uint64_t more = 0;
        CHECK_OK(qwen_request_next(request, -1, &event, &err));
        kind = qwen_event_kind(event);
        qwen_event_tokens(event, &more);
        CHECK(qwen_event_choice(event) < 3);
        num_ids[qwen_event_choice(event)] += more;
        CHECK_OK(qwen_event_usage(event, &usage, &err));
        if (kind == QWEN_EVENT_CHOICE_FINISHED) {
            CHECK(usage.completion_tokens == 15 && ++ended);
            CHECK(qwen_event_finish_reason(event) == QWEN_FINISH_LENGTH);
        }
        if (kind == QWEN_EVENT_FINISHED)
            CHECK(usage.completion_tokens == 45);
        qwen_event_free(event);
    }
    CHECK(ended == 3 && num_ids[0] == 15 && num_ids[1] == 15 && num_ids[2] == 15);
    qwen_request_free(request), qwen_options_free(options);
}

static void the_engine_describes_itself(const qwen_engine *engine) {
    qwen_buf *json = NULL;
    qwen_options *options = NULL;
    CHECK_OK(qwen_engine_health(engine, &err));
    CHECK_OK(qwen_engine_info_json(engine, &json, &err));
    CHECK(qwen_buf_data(json)[0] == '{');
    qwen_buf_free(json);
    CHECK_OK(qwen_engine_metrics_json(engine, &json, &err));
    CHECK(qwen_buf_data(json)[0] == '{');
    qwen_buf_free(json);
    CHECK_OK(qwen_engine_generation_json(engine, &json, &err));
    CHECK_OK(qwen_options_new("generation", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_merge_json(options, qwen_buf_data(json), qwen_buf_len(json), &err));
    qwen_buf_free(json), qwen_options_free(options);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    qwen_engine *engine = open_engine(argv[1], SMALL);
    events_come_in_order(engine);
    run_loses_nothing(engine);
    a_queue_serves_many(engine);
    a_deadline_is_typed(engine);
    choices_come_apart(engine);
    the_engine_describes_itself(engine);
    qwen_engine_free(engine);
    a_request_holds_its_engine(argv[1]);
    limits_are_typed(argv[1]);
    return 0;
}
