/* mixed.c: 64 threads make almost every call there is, in any order, on the same handles, while the engine
 * is drained, cancelled and freed under their feet. Usage: mixed MODEL [SECONDS] */
#include "mixed.h"

#include <math.h>
#include <time.h>

enum { THREADS = 64, ROUNDS = 3 };

/* --- The calls, by theme. Each takes what it needs from the world and leaves it whole. --- */

static void tokenize(actor *self) {
    static const char *const texts[] = {"hello", "", "\xE4\xBD\xA0\xE5\xA5\xBD <|im_end|> x",
                                        "[{\"role\": \"user\", \"content\": \"hi\"}]"};
    const world *all = self->all;
    const char *text = texts[roll(self, 4)];
    qwen_tokens *tokens = NULL, *prompt = NULL;
    qwen_buf *bytes = NULL, *piece = NULL, *rest = NULL, *info = NULL;
    CHECK_OK(qwen_tokenizer_encode(all->tokenizer, text, QWEN_CSTR, 0, &tokens, &err));
    const uint32_t *ids = qwen_tokens_data(tokens);
    const uint64_t count = qwen_tokens_len(tokens);
    CHECK_OK(qwen_tokenizer_decode(all->tokenizer, ids, count, 0, &bytes, &err));
    CHECK(qwen_buf_len(bytes) == strlen(text) && strcmp(qwen_buf_data(bytes), text) == 0);
    /* The detokeniser is everybody's: its text is nobody's, but whole characters. */
    CHECK_OK(qwen_detok_push(all->detok, ids, count, &piece, &err));
    CHECK(is_utf8(qwen_buf_data(piece), qwen_buf_len(piece)));
    CHECK_OK(qwen_detok_finish(all->detok, &rest, &err));
    CHECK_OK(
        qwen_tokenizer_render_chat_json(all->tokenizer, texts[3], QWEN_CSTR, 0, &prompt, &err));
    CHECK_OK(qwen_tokenizer_info_json(all->tokenizer, &info, &err));
    qwen_buf_free(bytes), qwen_buf_free(piece), qwen_buf_free(rest), qwen_buf_free(info);
    CHECK_OK(qwen_tokenizer_token_bytes(all->tokenizer, roll(self, 200), &bytes, &err));
    qwen_buf_free(bytes), qwen_tokens_free(tokens), qwen_tokens_free(prompt);
}

/* Sets one of the options that all threads share; the replies stay short. */
static void set_options(actor *self) {
    static const char *const merges[] = {"{\"temperature\": 0.7, \"top_k\": 5}",
                                         "{\"stop\": [\"a\", \"zz\"], \"logprobs\": true}",
                                         "{\"stop\": null, \"logprobs\": null, \"n\": null}",
                                         "{\"logit_bias\": {\"7\": 5}, \"priority\": 3}"};
    qwen_options *options = self->all->options;
    qwen_buf *json = NULL, *described = NULL;
    CHECK_OK(qwen_options_merge_json(options, merges[roll(self, 4)], QWEN_CSTR, &err));
    CHECK_OK(qwen_options_set_i64(options, "max_tokens", QWEN_CSTR, 1 + roll(self, 24), &err));
    CHECK_OK(qwen_options_set_f64(options, "min_p", QWEN_CSTR, 0.01 * roll(self, 9), &err));
    CHECK_OK(qwen_options_set_str(options, "overflow", QWEN_CSTR, "stop", QWEN_CSTR, &err));
    CHECK_OK(qwen_options_get_json(options, &json, &err));
    CHECK_OK(qwen_options_describe_json("generation", QWEN_CSTR, &described, &err));
    CHECK_FAILS(QWEN_E_OPTION, qwen_options_set_i64(options, "top_p", QWEN_CSTR, 7, &err));
    qwen_buf_free(json), qwen_buf_free(described);
}

/* A copy of the shared options, as they are at this moment, with one key more. */
static qwen_options *options_with(const actor *self, const char *more) {
    qwen_options *options = NULL;
    qwen_buf *json = NULL;
    CHECK_OK(qwen_options_get_json(self->all->options, &json, &err));
    CHECK_OK(qwen_options_new("generation", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_merge_json(options, qwen_buf_data(json), qwen_buf_len(json), &err));
    CHECK_OK(qwen_options_merge_json(options, more, QWEN_CSTR, &err));
    qwen_buf_free(json);
    return options;
}

static void look(actor *self) {
    const qwen_engine *engine = borrow(&self->all->engine);
    qwen_buf *json = NULL;
    if (engine != NULL) {
        TRY(qwen_engine_health(engine, &err));
        CHECK_OK(qwen_engine_metrics_json(engine, &json, &err));
        qwen_buf_free(json);
        CHECK_OK(qwen_engine_info_json(engine, &json, &err));
        qwen_buf_free(json);
        CHECK_OK(qwen_engine_generation_json(engine, &json, &err));
        qwen_buf_free(json);
        CHECK_OK(qwen_engine_metrics_prometheus(engine, "mixed", 5, &json, &err));
        CHECK(strstr(qwen_buf_data(json), "qwen_requests_running") != NULL);
        qwen_buf_free(json);
    }
    give_back(&self->all->engine);
    if (roll(self, 8) == 0) {
        CHECK_OK(qwen_engine_estimate_json(self->all->folder, QWEN_CSTR, NULL, &json, &err));
        qwen_buf_free(json);
    }
    CHECK_OK(qwen_build_info_json(&json, &err));
    qwen_buf_free(json);
}

static int32_t any_answer(const qwen_event *event, void *user) {
    read_event(event);
    const unsigned choice = roll(user, 24);
    return choice == 0 ? QWEN_STOP : choice == 1 ? QWEN_CANCEL : QWEN_CONTINUE;
}

typedef struct {
    actor *self;
    qwen_session *session;
} own_session;

static int32_t free_from_within(const qwen_event *event, void *user) {
    own_session *own = user;
    qwen_buf *reply = NULL;
    read_event(event);
    if (own->session == NULL)
        return QWEN_CONTINUE;
    CHECK_FAILS(QWEN_E_REENTRANT, qwen_session_reply(own->session, &reply, &err));
    qwen_session_free(own->session);
    own->session = NULL;
    return QWEN_CONTINUE;
}

/* A session of one's own, freed by its own callback. */
static void fleeting_session(actor *self) {
    own_session own = {self, NULL};
    const qwen_engine *engine = borrow(&self->all->engine);
    self->last = QWEN_E_CLOSED;
    if (engine != NULL)
        TRY(qwen_session_new(engine, NULL, &own.session, &err));
    give_back(&self->all->engine);
    if (self->last != QWEN_OK)
        return;
    TRY(qwen_session_chat(own.session, "bye", 3, self->all->options, free_from_within, &own, &err));
    qwen_session_free(own.session);
}

/* Everything a conversation can do, with one that others use as well. */
static void converse(actor *self, qwen_session *session) {
    const char *appended = "[{\"role\": \"user\", \"content\": \"a\"},"
                           " {\"role\": \"assistant\", \"content\": \"b\"}]";
    qwen_buf *buf = NULL;
    switch (roll(self, 11)) {
    case 0:
    case 1:
        TRY(qwen_session_chat(session, "hello", 5, self->all->options, any_answer, self, &err));
        break;
    case 2:
        TRY(qwen_session_regenerate(session, self->all->options, any_answer, self, &err));
        break;
    case 3:
        TRY(qwen_session_append_json(session, appended, QWEN_CSTR, &err));
        break;
    case 4:
        TRY(qwen_session_truncate(session, roll(self, 3), &err));
        break;
    case 5:
        TRY(qwen_session_set_system(session, "be brief", QWEN_CSTR, &err));
        break;
    case 6:
        TRY(qwen_session_edit(session, 0, "be long", QWEN_CSTR, &err));
        break;
    case 7:
        TRY(qwen_session_cancel(session, QWEN_STOP + (int32_t)roll(self, 2), &err));
        break;
    case 8:
        TRY(qwen_session_reply(session, &buf, &err));
        break;
    case 9:
        TRY(qwen_session_tool_result(session, "5", 1, self->all->options, NULL, NULL, &err));
        break;
    default:
        TRY(qwen_session_messages_json(session, &buf, &err));
    }
    qwen_buf_free(buf);
}

/* Saves one session and loads it into another; or puts a fork in another's place. */
static void copy_session(actor *self) {
    shared *to = &self->all->sessions[roll(self, SESSIONS)];
    shared *from = &self->all->sessions[roll(self, SESSIONS)];
    qwen_session *fork = NULL;
    qwen_buf *saved = NULL;
    const qwen_session *session = borrow(from);
    if (roll(self, 2))
        TRY(qwen_session_fork(session, &fork, &err));
    else
        TRY(qwen_session_save(session, &saved, &err));
    give_back(from);
    if (fork != NULL)
        qwen_session_free(replace(to, fork));
    if (saved == NULL)
        return;
    const uint8_t *bytes = (const uint8_t *)qwen_buf_data(saved);
    qwen_session *other = borrow(to);
    TRY(qwen_session_load(other, bytes, qwen_buf_len(saved), &err));
    if (qwen_buf_len(saved) > 0 && roll(self, 2)) {
        qwen_error *error = NULL;
        const int32_t status = qwen_session_load(other, bytes, qwen_buf_len(saved) - 1, &error);
        CHECK(status == QWEN_E_CORRUPT || status == QWEN_E_BUSY);
        qwen_error_free(error);
    }
    give_back(to);
    qwen_buf_free(saved);
}

/* A request like any other: chat or ids, one reply or several, plain, of a format, or in a hurry.
 */
static qwen_request *new_request(actor *self) {
    static const char *const more[] = {
        "{}", "{\"n\": 2, \"logprobs\": true, \"top_logprobs\": 2}",
        "{\"response_format\": {\"type\": \"regex\", \"regex\": \"[ab]{2,9}\"}, \"stop\": null}",
        "{\"deadline_ms\": 3, \"cache\": false}", "{\"queue_timeout_ms\": 2, \"priority\": -1}"};
    const char *messages = "[{\"role\": \"user\", \"content\": \"what is it?\"}]";
    uint32_t ids[40];
    qwen_request *request = NULL;
    const qwen_engine *engine = borrow(&self->all->engine);
    if (engine != NULL) {
        qwen_options *options = options_with(self, more[roll(self, 5)]);
        for (unsigned at = 0; at < 40; ++at)
            ids[at] = at < 30 ? at : roll(self, 200);
        if (roll(self, 2))
            TRY(qwen_request_new_tokens(engine, ids, 40, options, &request, &err));
        else
            TRY(qwen_request_new_chat(engine, messages, QWEN_CSTR, options, &request, &err));
        qwen_options_free(options);
    }
    give_back(&self->all->engine);
    return request;
}

static void submit(actor *self) {
    qwen_request *request = new_request(self);
    shared *queue = &self->all->queues[roll(self, QUEUES)];
    if (request == NULL)
        return;
    qwen_queue *into = borrow(queue);
    TRY(qwen_request_submit(request, roll(self, 2) ? into : NULL, roll(self, 1000), &err));
    give_back(queue);
    /* Whoever was there is freed, running or not. */
    qwen_request_free(replace(&self->all->requests[roll(self, SLOTS)], request));
}

static void run_to_the_end(actor *self) {
    qwen_request *request = new_request(self);
    if (request == NULL)
        return;
    TRY(qwen_request_submit(request, NULL, 0, &err));
    if (self->last == QWEN_OK)
        TRY(qwen_request_run(request, any_answer, self, &err));
    qwen_request_free(request);
}

static void meddle(actor *self) {
    shared *slot = &self->all->requests[roll(self, SLOTS)];
    qwen_request *request = borrow(slot);
    qwen_event *event = NULL;
    if (request != NULL && roll(self, 2)) {
        TRY(qwen_request_cancel(request, QWEN_STOP + (int32_t)roll(self, 2), &err));
    } else if (request != NULL) {
        TRY(qwen_request_next(request, roll(self, 3), &event, &err));
        if (event != NULL)
            read_event(event);
        qwen_event_free(event);
    }
    give_back(slot);
    if (roll(self, 4) == 0)
        qwen_request_free(replace(slot, NULL));
}

static void drain_queue(actor *self) {
    shared *at = &self->all->queues[roll(self, QUEUES)];
    qwen_events *events = NULL;
    TRY(qwen_queue_next(borrow(at), 1 + roll(self, 20), roll(self, 4), &events, &err));
    give_back(at);
    for (uint64_t index = 0; index < qwen_events_len(events); ++index)
        read_event(qwen_events_at(events, index));
    qwen_events_free(events);
    if (roll(self, 50) == 0) {
        qwen_queue *queue = NULL;
        CHECK_OK(qwen_queue_new(&queue, &err));
        qwen_queue_free(replace(at, queue));
    }
}

static void score(actor *self) {
    const uint32_t ids[] = {1, 2, 3, 4, 5, 6};
    const qwen_engine *engine = borrow(&self->all->engine);
    qwen_buf *json = NULL;
    if (engine != NULL && roll(self, 2))
        TRY(qwen_score(engine, "a b", 3, " c d", 4, self->all->options, &json, &err));
    else if (engine != NULL)
        TRY(qwen_score_tokens(engine, ids, 3, ids + 3, 3, NULL, &json, &err));
    give_back(&self->all->engine);
    qwen_buf_free(json);
}

static void embed(actor *self) {
    const uint32_t ids[] = {1, 2, 3, 4, 5, 6};
    const qwen_engine *engine = borrow(&self->all->engine);
    qwen_floats *states = NULL;
    const int32_t pooling = QWEN_POOL_LAST + (int32_t)roll(self, 3);
    if (engine != NULL && roll(self, 2))
        TRY(qwen_embed(engine, "a b c d", 7, pooling, 1, self->all->options, &states, &err));
    else if (engine != NULL)
        TRY(qwen_embed_tokens(engine, ids, 6, pooling, 0, NULL, &states, &err));
    give_back(&self->all->engine);
    for (uint64_t at = 0; at < qwen_floats_len(states); ++at)
        CHECK(isfinite(qwen_floats_data(states)[at]));
    qwen_floats_free(states);
}

static void *act(void *user) {
    actor *self = user;
    while (!__atomic_load_n(&self->all->stop, __ATOMIC_RELAXED)) {
        shared *session = &self->all->sessions[roll(self, SESSIONS)];
        switch (roll(self, 13)) {
        case 0:
            tokenize(self);
            break;
        case 1:
            set_options(self);
            break;
        case 2:
            look(self);
            break;
        case 3:
            fleeting_session(self);
            break;
        case 4:
        case 5:
            converse(self, borrow(session));
            give_back(session);
            break;
        case 6:
            copy_session(self);
            break;
        case 7:
            submit(self);
            break;
        case 8:
            run_to_the_end(self);
            break;
        case 9:
            meddle(self);
            break;
        case 10:
            drain_queue(self);
            break;
        case 11:
            embed(self);
            break;
        default:
            score(self);
        }
    }
    return NULL;
}

/* --- One engine's life --- */

static void begin(world *all, const char *folder) {
    memset(all, 0, sizeof *all);
    shared *first[] = {&all->engine, all->sessions, all->requests, all->queues};
    const int counts[] = {1, SESSIONS, SLOTS, QUEUES};
    pthread_rwlockattr_t fair;
    CHECK(pthread_rwlockattr_init(&fair) == 0);
    /* Else a writer waits for ever: 64 threads leave it no moment without a reader. */
    CHECK(pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP) == 0);
    for (int kind = 0; kind < 4; ++kind)
        for (int at = 0; at < counts[kind]; ++at)
            CHECK(pthread_rwlock_init(&first[kind][at].lock, &fair) == 0);
    /* Fewer pages and places than the threads ask for. */
    qwen_engine *engine = open_engine(folder, "{\"num_threads\": 1, \"kv_cache_tokens\": 2048,"
                                              " \"max_context_tokens\": 512,"
                                              " \"max_queue_requests\": 24}");
    all->folder = folder, all->engine.handle = engine;
    CHECK_OK(qwen_tokenizer_of_engine(engine, &all->tokenizer, &err));
    CHECK_OK(qwen_detok_new(all->tokenizer, &all->detok, &err));
    all->options = long_reply(12, 3);
    for (int at = 0; at < SESSIONS; ++at)
        all->sessions[at].handle = new_session(engine);
    for (int at = 0; at < QUEUES; ++at) {
        qwen_queue *queue = NULL;
        CHECK_OK(qwen_queue_new(&queue, &err));
        all->queues[at].handle = queue;
    }
}

/* All that was submitted ended, one way or another, and nothing is held. */
static void at_rest(const qwen_engine *engine) {
    static const char *const gauges[] = {"\"pages_used\":0,", "\"requests_running\":0,",
                                         "\"requests_waiting\":0,", "\"requests_preempted\":0,"};
    qwen_buf *json = NULL;
    CHECK_OK(qwen_engine_metrics_json(engine, &json, &err));
    for (int at = 0; at < 4; ++at)
        CHECK(strstr(qwen_buf_data(json), gauges[at]) != NULL);
    qwen_buf_free(json);
}

/* The engine ends while all threads use it: drained, cancelled, or its handle freed. */
static void end_engine(world *all, int round) {
    qwen_engine *engine = borrow(&all->engine);
    if (round % ROUNDS == 0)
        CHECK_OK(qwen_engine_shutdown(engine, QWEN_SHUTDOWN_DRAIN, -1, &err));
    if (round % ROUNDS == 1)
        CHECK_OK(qwen_engine_shutdown(engine, QWEN_SHUTDOWN_CANCEL, -1, &err));
    if (round % ROUNDS != 2)
        at_rest(engine);
    give_back(&all->engine);
    if (round % ROUNDS == 2)
        qwen_engine_free(replace(&all->engine, NULL));
}

static void end(world *all) {
    qwen_engine_free(replace(&all->engine, NULL));
    for (int at = 0; at < SLOTS; ++at)
        qwen_request_free(replace(&all->requests[at], NULL));
    for (int at = 0; at < QUEUES; ++at)
        qwen_queue_free(replace(&all->queues[at], NULL));
    for (int at = 0; at < SESSIONS; ++at)
        qwen_session_free(replace(&all->sessions[at], NULL));
    qwen_detok_free(all->detok), qwen_options_free(all->options);
    qwen_tokenizer_free(all->tokenizer);
}

static void wait_seconds(double seconds) {
    const long ns = (long)((seconds - (double)(long)seconds) * 1e9);
    const struct timespec time = {(time_t)seconds, ns};
    CHECK(nanosleep(&time, NULL) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    const double seconds = (argc > 2 ? atof(argv[2]) : 18) / ROUNDS;
    static world all;
    for (int round = 0; round < ROUNDS; ++round) {
        pthread_t threads[THREADS];
        actor actors[THREADS];
        uint64_t calls = 0;
        begin(&all, argv[1]);
        for (unsigned at = 0; at < THREADS; ++at) {
            const actor made = {&all, 0x9E3779B97F4A7C15u * (at + 1 + (unsigned)round * THREADS), 0,
                                0};
            actors[at] = made;
            CHECK(pthread_create(&threads[at], NULL, act, &actors[at]) == 0);
        }
        wait_seconds(seconds * 0.8);
        end_engine(&all, round);
        wait_seconds(seconds * 0.2);
        __atomic_store_n(&all.stop, 1, __ATOMIC_RELAXED);
        for (int at = 0; at < THREADS; ++at) {
            CHECK(pthread_join(threads[at], NULL) == 0);
            calls += actors[at].calls;
        }
        CHECK(calls > THREADS);
        end(&all);
    }
    return 0;
}
