/* Many conversations with one model at once: concurrent MODEL [THREADS]
 *
 * 32 conversations are shared out among 32 threads, or as many as THREADS says: with 1 they follow
 * one another, which shows what the batch gains. All threads use one engine, and each conversation
 * is a session that one thread at a time uses. Replies are streamed: the first one is shown as it
 * is made. Every eighth caller loses patience and cancels. At the end the engine tells its metrics.
 *
 *   cc -std=c99 -D_POSIX_C_SOURCE=200809L concurrent.c $(pkg-config --cflags --libs qwen) -pthread
 */
#include <pthread.h>
#include <qwen.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CONVERSATIONS = 32, MOST_TOKENS = 48, PATIENCE_TOKENS = 8 };

typedef struct {
    int index;
    int32_t status;       /* how it ended: QWEN_OK, QWEN_E_CANCELLED by its caller, or an error */
    uint64_t tokens;      /* of the reply, as far as they were told */
    double first_seconds; /* from the question to the first event with text */
    double begun;
} conversation;

typedef struct {
    pthread_t thread;
    const qwen_engine *engine;
    conversation *conversations;
    int first, step; /* this thread's conversations: first, first + step... */
} worker;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Called on the conversation's own thread, between two steps of the model. */
static int32_t on_event(const qwen_event *event, void *user) {
    conversation *self = user;
    uint64_t num_ids = 0;
    qwen_event_tokens(event, &num_ids);
    if (num_ids > 0 && self->tokens == 0)
        self->first_seconds = now() - self->begun;
    self->tokens += num_ids;
    if (self->index == 0 && fputs(qwen_event_text(event, NULL), stdout) < 0)
        return QWEN_CANCEL;
    return self->index % 8 == 7 && self->tokens > PATIENCE_TOKENS ? QWEN_CANCEL : QWEN_CONTINUE;
}

static void talk(const qwen_engine *engine, conversation *self) {
    char question[64];
    qwen_options *options = NULL;
    qwen_session *session = NULL;
    qwen_error *error = NULL;
    snprintf(question, sizeof question, "Tell me a story about %d friends.", self->index + 2);
    self->begun = now();
    self->status = qwen_options_new("generation", QWEN_CSTR, &options, &error);
    if (self->status == QWEN_OK)
        self->status = qwen_options_set_i64(options, "max_tokens", QWEN_CSTR, MOST_TOKENS, &error);
    if (self->status == QWEN_OK)
        self->status = qwen_options_set_i64(options, "seed", QWEN_CSTR, self->index, &error);
    if (self->status == QWEN_OK)
        self->status = qwen_session_new(engine, NULL, &session, &error);
    if (self->status == QWEN_OK)
        self->status =
            qwen_session_chat(session, question, QWEN_CSTR, options, on_event, self, &error);
    if (self->status != QWEN_OK && self->status != QWEN_E_CANCELLED)
        fprintf(stderr, "conversation %d: %s\n", self->index, qwen_error_message(error));
    qwen_error_free(error), qwen_session_free(session), qwen_options_free(options);
}

static void *work(void *user) {
    const worker *self = user;
    for (int at = self->first; at < CONVERSATIONS; at += self->step)
        talk(self->engine, &self->conversations[at]);
    return NULL;
}

/* Returns how many conversations failed. */
static int report(const conversation *conversations, int num_threads, double seconds) {
    int finished = 0, cancelled = 0;
    uint64_t tokens = 0;
    double first_seconds = 0;
    for (int at = 0; at < CONVERSATIONS; ++at) {
        finished += conversations[at].status == QWEN_OK;
        cancelled += conversations[at].status == QWEN_E_CANCELLED;
        tokens += conversations[at].tokens;
        first_seconds += conversations[at].first_seconds / CONVERSATIONS;
    }
    printf("\n%d conversations on %d threads: %d finished, %d cancelled\n", CONVERSATIONS,
           num_threads, finished, cancelled);
    printf("%llu tokens in %.2f s: %.0f tokens/s; the first after %.3f s on average\n",
           (unsigned long long)tokens, seconds, (double)tokens / seconds, first_seconds);
    return CONVERSATIONS - finished - cancelled;
}

int main(int argc, char **argv) {
    static conversation conversations[CONVERSATIONS];
    static worker workers[CONVERSATIONS];
    const int num_threads = argc > 2 ? atoi(argv[2]) : CONVERSATIONS;
    qwen_options *options = NULL;
    qwen_engine *engine = NULL;
    qwen_buf *metrics = NULL;
    qwen_error *error = NULL;
    int started = 0;
    if (argc < 2 || num_threads < 1 || num_threads > CONVERSATIONS) {
        fprintf(stderr, "usage: concurrent MODEL [THREADS, 1 to %d]\n", CONVERSATIONS);
        return 2;
    }
    /* None of them is long; the memory for what they remember is shared. */
    if (qwen_options_new("engine", QWEN_CSTR, &options, &error) ||
        qwen_options_set_i64(options, "max_context_tokens", QWEN_CSTR, 512, &error) ||
        qwen_engine_open(argv[1], QWEN_CSTR, options, NULL, NULL, &engine, &error)) {
        fprintf(stderr, "%s\n", qwen_error_message(error));
        return qwen_error_free(error), qwen_options_free(options), 1;
    }
    for (int at = 0; at < CONVERSATIONS; ++at)
        conversations[at].index = at;
    const double begun = now();
    for (; started < num_threads; ++started) {
        worker *next = &workers[started];
        next->engine = engine, next->conversations = conversations;
        next->first = started, next->step = num_threads;
        if (pthread_create(&next->thread, NULL, work, next) != 0)
            break;
    }
    for (int at = 0; at < started; ++at)
        pthread_join(workers[at].thread, NULL);
    int failed = report(conversations, num_threads, now() - begun) + num_threads - started;
    if (qwen_engine_metrics_json(engine, &metrics, NULL) == QWEN_OK)
        printf("%s\n", qwen_buf_data(metrics));
    qwen_buf_free(metrics), qwen_engine_free(engine), qwen_options_free(options);
    return failed != 0;
}
