/* threads.c: a host with many threads: chats, streams, cancels, encodes, reads metrics, all on one
 * engine at once. Usage: threads MODEL [ROUNDS] */
#include "model.h"

#include <pthread.h>

enum { THREADS = 32 };

typedef struct {
    qwen_engine *engine;
    qwen_tokenizer *tokenizer;
    int index, rounds;
} job;

static int32_t keep_going(const qwen_event *event, void *user) {
    (void)event, (void)user;
    return QWEN_CONTINUE;
}

static int32_t cancel_soon(const qwen_event *event, void *user) {
    (void)event;
    return ++*(int *)user < 4 ? QWEN_CONTINUE : QWEN_CANCEL;
}

static void chat(const job *self, int round) {
    qwen_options *options = long_reply(20 + round, self->index);
    qwen_session *session = new_session(self->engine);
    qwen_buf *first = NULL, *second = NULL;
    CHECK_OK(qwen_session_chat(session, "hello", 5, options, keep_going, NULL, &err));
    CHECK_OK(qwen_session_reply(session, &first, &err));
    CHECK_OK(qwen_session_regenerate(session, options, NULL, NULL, &err));
    CHECK_OK(qwen_session_reply(session, &second, &err));
    /* The same seed gives the same reply, whatever else is in the batch. */
    CHECK(qwen_buf_len(first) == qwen_buf_len(second));
    CHECK(memcmp(qwen_buf_data(first), qwen_buf_data(second), qwen_buf_len(first)) == 0);
    qwen_buf_free(first), qwen_buf_free(second);
    qwen_session_free(session), qwen_options_free(options);
}

static void cancel(const job *self) {
    qwen_options *options = long_reply(1500, self->index);
    qwen_session *session = new_session(self->engine);
    int events = 0;
    CHECK_FAILS(QWEN_E_CANCELLED,
                qwen_session_chat(session, "hello", 5, options, cancel_soon, &events, &err));
    qwen_session_free(session), qwen_options_free(options);
}

static void abandon(const job *self) {
    const uint32_t ids[] = {1, 2, 3};
    qwen_options *options = long_reply(1500, self->index);
    qwen_request *request = NULL;
    qwen_event *event = NULL;
    CHECK_OK(qwen_request_new_tokens(self->engine, ids, 3, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_OK(qwen_request_next(request, -1, &event, &err));
    qwen_event_free(event), qwen_request_free(request), qwen_options_free(options);
}

static void look(const job *self) {
    qwen_tokens *tokens = NULL;
    qwen_buf *json = NULL;
    CHECK_OK(qwen_tokenizer_encode(self->tokenizer, "hello, world", QWEN_CSTR, 0, &tokens, &err));
    CHECK(qwen_tokens_len(tokens) > 0);
    CHECK_OK(qwen_engine_metrics_json(self->engine, &json, &err));
    qwen_tokens_free(tokens), qwen_buf_free(json);
}

static void *work(void *user) {
    const job *self = user;
    for (int round = 0; round < self->rounds; ++round) {
        switch ((self->index + round) % 4) {
        case 0:
            chat(self, round);
            break;
        case 1:
            cancel(self);
            break;
        case 2:
            abandon(self);
            break;
        default:
            look(self);
            break;
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    pthread_t threads[THREADS];
    job jobs[THREADS];
    qwen_engine *engine = open_engine(argv[1], SMALL);
    qwen_tokenizer *tokenizer = NULL;
    CHECK_OK(qwen_tokenizer_of_engine(engine, &tokenizer, &err));
    for (int index = 0; index < THREADS; ++index) {
        const job made = {engine, tokenizer, index, argc > 2 ? atoi(argv[2]) : 24};
        jobs[index] = made;
        CHECK(pthread_create(&threads[index], NULL, work, &jobs[index]) == 0);
    }
    for (int index = 0; index < THREADS; ++index)
        CHECK(pthread_join(threads[index], NULL) == 0);
    qwen_tokenizer_free(tokenizer), qwen_engine_free(engine);
    return 0;
}
