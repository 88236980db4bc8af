/* mixed.h: what the threads of mixed.c share: one engine's handles, dice, and the judge of
 * statuses. */
#ifndef MIXED_H
#define MIXED_H

#include "model.h"
#include "utf8.h"

#include <pthread.h>

enum { SESSIONS = 12, SLOTS = 24, QUEUES = 3 };

/* A handle must not be freed while another thread is entering a call on it: those that threads
 * share have a lock, taken for writing to replace the handle, for reading to use it. */
typedef struct {
    pthread_rwlock_t lock;
    void *handle;
} shared;

typedef struct {
    shared engine; /* NULL once it is freed, under everybody's feet */
    shared sessions[SESSIONS], requests[SLOTS], queues[QUEUES];
    qwen_tokenizer *tokenizer;
    qwen_options *options; /* of generation; all threads change them, too */
    qwen_detok *detok;
    const char *folder;
    int stop; /* atomic: threads end */
} world;

typedef struct {
    world *all;
    uint64_t dice;
    uint64_t calls; /* that were judged */
    int32_t last;   /* what the last of them answered */
} actor;

static inline unsigned roll(actor *self, unsigned sides) {
    self->dice ^= self->dice << 13, self->dice ^= self->dice >> 7, self->dice ^= self->dice << 17;
    return (unsigned)(self->dice >> 33) % sides;
}

/* What a correct call may answer while others do as they like. Never a bug's status, nor a failure
 * of the engine; and status and error agree. */
static inline void judge(actor *self, const char *file, int line, int32_t status,
                         qwen_error *error) {
    switch (status) {
    case QWEN_OK:
    case QWEN_E_STATE:   /* no reply yet, a message without a reply, submitted twice */
    case QWEN_E_BUSY:    /* another thread has the session or request */
    case QWEN_E_CLOSED:  /* the engine was shut down */
    case QWEN_E_TIMEOUT: /* nothing came in time */
    case QWEN_E_END:     /* nothing more will come */
    case QWEN_E_DEADLINE:
    case QWEN_E_CANCELLED:
    case QWEN_E_QUEUE_FULL:
    case QWEN_E_CONTEXT_FULL:
        break;
    default:
        check_error(file, line, QWEN_OK, status, error);
    }
    if (qwen_error_code(error) != status)
        check_error(file, line, status, status, error);
    self->calls += 1, self->last = status;
    qwen_error_free(error);
}

/* Judges a call, whose status becomes `self->last`; it may use `err`. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        qwen_error *err = NULL;                                                                    \
        const int32_t got_ = (call);                                                               \
        judge(self, __FILE__, __LINE__, got_, err);                                                \
    } while (0)

static inline void *borrow(shared *at) {
    CHECK(pthread_rwlock_rdlock(&at->lock) == 0);
    return at->handle;
}

static inline void give_back(shared *at) { CHECK(pthread_rwlock_unlock(&at->lock) == 0); }

/* Puts `handle` in the place of another, which the caller now owns. */
static inline void *replace(shared *at, void *handle) {
    CHECK(pthread_rwlock_wrlock(&at->lock) == 0);
    void *before = at->handle;
    at->handle = handle;
    give_back(at);
    return before;
}

/* Reads all that an event has. */
static inline void read_event(const qwen_event *event) {
    uint64_t length = 0, num_ids = 0;
    qwen_usage usage;
    qwen_logprob logprob;
    const char *text = qwen_event_text(event, &length);
    usage.struct_size = sizeof usage, logprob.struct_size = sizeof logprob;
    CHECK(is_utf8(text, length) && text[length] == 0);
    CHECK(qwen_event_bytes(event, &length) != NULL);
    CHECK(qwen_event_kind(event) != 0);
    qwen_event_tokens(event, &num_ids);
    CHECK(qwen_event_num_logprobs(event) == 0 || qwen_event_num_logprobs(event) == num_ids);
    for (uint64_t at = 0; at < qwen_event_num_logprobs(event); ++at) {
        CHECK_OK(qwen_event_logprob(event, at, 0, &logprob, &err));
        CHECK(logprob.logprob <= 0);
    }
    CHECK_OK(qwen_event_usage(event, &usage, &err));
    CHECK((qwen_event_kind(event) == QWEN_EVENT_FAILED) == (qwen_event_error(event) != NULL));
    CHECK(qwen_event_error(event) == NULL ||
          qwen_error_code(qwen_event_error(event)) != QWEN_E_ENGINE_FAILED);
    CHECK(qwen_event_tool_name(event, NULL) != NULL &&
          qwen_event_tool_arguments(event, NULL) != NULL);
}

#endif
