/* page.c: the code that bindings/c/README.md shows, in functions that run. Usage: page MODEL.
 * tests/readme.rs compiles and runs it, and sees that the page shows nothing else. */
#include <qwen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s\n", what);
        exit(1);
    }
}

static int32_t on_event(const qwen_event *event, void *out) {
    uint64_t len = 0;
    const char *text =
        qwen_event_text(event, &len); /* whole characters, with NULs if the model wrote some */
    if (qwen_event_kind(event) == QWEN_EVENT_FINISHED) {
        qwen_usage usage;
        usage.struct_size = sizeof usage;
        qwen_event_usage(event, &usage, NULL);
        fprintf(stderr, "%llu tokens\n", (unsigned long long)usage.completion_tokens);
    }
    return fwrite(text, 1, len, out) == len ? QWEN_CONTINUE : QWEN_CANCEL;
}

static int32_t stream(qwen_session *session, qwen_error **error) {
    qwen_options *options = NULL;
    int32_t status = qwen_options_new("generation", QWEN_CSTR, &options, error);
    if (status == QWEN_OK)
        status = qwen_options_merge_json(options, "{\"max_tokens\": 20, \"temperature\": 0.7}",
                                         QWEN_CSTR, error);
    if (status == QWEN_OK)
        status = qwen_session_chat(session, "My name is Ada.", QWEN_CSTR, options, on_event, stdout,
                                   error);
    qwen_options_free(options);
    return status;
}

static int32_t pull(const qwen_engine *engine, const qwen_options *options, qwen_error **error) {
    const char *messages = "[{\"role\": \"user\", \"content\": \"Hello!\"}]";
    qwen_request *request = NULL;
    qwen_event *event = NULL;
    int32_t status = qwen_request_new_chat(engine, messages, QWEN_CSTR, options, &request, error);
    if (status == QWEN_OK)
        status = qwen_request_submit(request, NULL, 0, error);
    while (status == QWEN_OK) {
        status = qwen_request_next(request, -1, &event, error); /* waits */
        fputs(qwen_event_text(event, NULL), stdout);
        qwen_event_free(event);
    }
    qwen_request_free(request); /* cancels one that runs */
    return status;              /* QWEN_E_END after the last event */
}

/* Called on another thread, by a signal's handler thread, by the user interface. */
static int32_t on_stop_button(qwen_session *session) {
    return qwen_session_cancel(session, QWEN_STOP, NULL);
}

static int32_t limit(qwen_options *options, qwen_error **error) {
    return qwen_options_merge_json(options, "{\"deadline_ms\": 60000, \"queue_timeout_ms\": 5000}",
                                   QWEN_CSTR, error);
}

/* Serves many requests with one thread: tag i is request i. */
static int32_t serve(qwen_request **requests, uint64_t num_requests, qwen_error **error) {
    qwen_queue *queue = NULL;
    qwen_events *events = NULL;
    uint64_t i;
    int32_t status = qwen_queue_new(&queue, error);
    for (i = 0; i < num_requests && status == QWEN_OK; ++i)
        status = qwen_request_submit(requests[i], queue, i, error);
    while (status == QWEN_OK) {
        status = qwen_queue_next(queue, 64, -1, &events, error);
        for (i = 0; i < qwen_events_len(events); ++i) {
            const qwen_event *event = qwen_events_at(events, i);
            printf("%llu: %s\n", (unsigned long long)qwen_event_tag(event),
                   qwen_event_text(event, NULL));
        }
        qwen_events_free(events);
    }
    qwen_queue_free(queue);
    return status; /* QWEN_E_END when all have ended */
}

static qwen_engine *open_or_say_why(const char *folder) {
    qwen_engine *engine = NULL;
    qwen_error *error = NULL;
    switch (qwen_engine_open(folder, QWEN_CSTR, NULL, NULL, NULL, &engine, &error)) {
    case QWEN_OK:
        break;
    case QWEN_E_OOM_HOST:
    case QWEN_E_OOM_DEVICE:
        fprintf(stderr, "it does not fit: %s\n", qwen_error_detail_json(error));
        break;
    default:
        fprintf(stderr, "%s: %s\n", qwen_status_name(qwen_error_code(error)),
                qwen_error_message(error));
    }
    qwen_error_free(error);
    return engine; /* NULL where it failed */
}

static int is_the_right_library(void) {
    qwen_error *error = NULL;
    if (qwen_check_abi(QWEN_ABI_VERSION, &error) != QWEN_OK)
        fprintf(stderr, "libqwen %s: %s\n", qwen_version(), qwen_error_message(error));
    qwen_error_free(error);
    return error == NULL;
}

/* For an orchestrator: will it fit, is it well, how busy is it; and a quiet end. */
static int32_t operate(const char *folder, qwen_engine *engine, qwen_error **error) {
    qwen_buf *estimate = NULL, *metrics = NULL;
    int32_t status = qwen_engine_estimate_json(folder, QWEN_CSTR, NULL, &estimate, error);
    if (status == QWEN_OK)
        printf("before opening: %s\n", qwen_buf_data(estimate)); /* "fits", bytes of each part */
    if (status == QWEN_OK)
        status = qwen_engine_health(engine, error); /* not QWEN_OK: open a new engine */
    if (status == QWEN_OK)
        status = qwen_engine_metrics_prometheus(engine, "qwen", QWEN_CSTR, &metrics, error);
    if (status == QWEN_OK)
        printf("%s", qwen_buf_data(metrics)); /* qwen_engine_metrics_json has them as JSON */
    if (status == QWEN_OK) /* refuse what is new, finish what was accepted, for 30 s at most */
        status = qwen_engine_shutdown(engine, QWEN_SHUTDOWN_DRAIN, 30000, error);
    if (status == QWEN_E_TIMEOUT) { /* then cancel what is left */
        if (error != NULL)
            qwen_error_free(*error);
        status = qwen_engine_shutdown(engine, QWEN_SHUTDOWN_CANCEL, -1, error);
    }
    qwen_buf_free(estimate);
    qwen_buf_free(metrics);
    return status;
}

int main(int argc, char **argv) {
    const char *messages = "[{\"role\": \"user\", \"content\": \"Hello!\"}]";
    qwen_engine *engine;
    qwen_session *session = NULL;
    qwen_options *options = NULL;
    qwen_request *two[2] = {NULL, NULL};
    must(argc == 2 && is_the_right_library(), "an argument, and the library");
    must(open_or_say_why("/no/such/folder") == NULL, "no model there");
    engine = open_or_say_why(argv[1]);
    must(engine != NULL, "a model");
    must(qwen_session_new(engine, NULL, &session, NULL) == QWEN_OK, "a session");
    must(stream(session, NULL) == QWEN_OK && on_stop_button(session) == QWEN_OK, "a reply");
    must(qwen_options_new("generation", QWEN_CSTR, &options, NULL) == QWEN_OK, "options");
    must(limit(options, NULL) == QWEN_OK, "limits");
    must(qwen_options_set_i64(options, "max_tokens", QWEN_CSTR, 8, NULL) == QWEN_OK, "few");
    must(pull(engine, options, NULL) == QWEN_E_END, "events");
    must(!qwen_request_new_chat(engine, messages, QWEN_CSTR, options, &two[0], NULL), "one");
    must(!qwen_request_new_chat(engine, messages, QWEN_CSTR, options, &two[1], NULL), "two");
    must(serve(two, 2, NULL) == QWEN_E_END, "both");
    qwen_request_free(two[0]);
    qwen_request_free(two[1]);
    must(operate(argv[1], engine, NULL) == QWEN_OK, "an end in peace");
    qwen_options_free(options);
    qwen_session_free(session);
    qwen_engine_free(engine);
    return 0;
}
