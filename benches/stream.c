/* What a streamed token costs in plain C, which the bindings are compared with:
 *
 *   stream MODEL STREAMS TOKENS [threads]
 *
 * Submits that many requests of that many tokens, to one completion queue or, with `threads`, each
 * from a thread of its own that reads it, and reads every event's text and ids: once for what only
 * the first time costs, and once more to print the wall time, and the CPU time of all threads but
 * the engine's, in nanoseconds a token. The model should be tiny: what is measured is all else.
 * bindings/go/bench and bindings/java/bench do the same. */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <qwen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const MESSAGES = "[{\"role\": \"user\", \"content\": \"hello\"}]";
enum { BATCH = 128 };

static _Thread_local qwen_error *error;

static void check(int32_t status) {
    if (status != QWEN_OK) {
        fprintf(stderr, "stream: %s\n", qwen_error_message(error));
        exit(1);
    }
}

static double ns_by(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* The CPU time of readers that have ended. */
static double ended_ns;

/* The name of a thread that reads; it says itself what it has used when it ends. */
static const char *const READER = "reader";

/* The CPU time of all threads but the library's own: what reading costs, whatever the engine does. */
static double cpu_ns(void) {
    double total = ended_ns;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *task; tasks != NULL && (task = readdir(tasks)) != NULL;) {
        char path[300], name[32] = "qwen-";
        double spent = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL || fgets(name, sizeof name, file) == NULL)
            name[0] = '\0';
        if (file != NULL)
            fclose(file);
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", task->d_name);
        file = fopen(path, "r");
        if (file != NULL && fscanf(file, "%lf", &spent) == 1 && strncmp(name, "qwen-", 5) != 0 &&
            strncmp(name, READER, strlen(READER)) != 0)
            total += spent;
        if (file != NULL)
            fclose(file);
    }
    if (tasks != NULL)
        closedir(tasks);
    return total;
}

static qwen_engine *engine;
static qwen_options *reply;

static qwen_request *submit(qwen_queue *queue) {
    qwen_request *request = NULL;
    check(qwen_request_new_chat(engine, MESSAGES, QWEN_CSTR, reply, &request, &error));
    check(qwen_request_submit(request, queue, 0, &error));
    return request;
}

typedef struct {
    pthread_t thread;
    uint64_t tokens, bytes;
    double cpu_ns;
} reader;

/* Whether the reply goes on. */
static int read_event(const qwen_event *event, reader *by) {
    uint64_t length = 0, num_ids = 0;
    qwen_event_text(event, &length);
    qwen_event_tokens(event, &num_ids);
    by->bytes += length, by->tokens += num_ids;
    return qwen_event_kind(event) < QWEN_EVENT_FINISHED;
}

/* Reads all streams by one queue. */
static void read_queue(qwen_queue *queue, long streams, reader *by) {
    for (long i = 0; i < streams; i++)
        submit(queue); /* Freed at the end of the process: freeing it now would cancel it. */
    while (streams > 0) {
        qwen_events *events = NULL;
        check(qwen_queue_next(queue, BATCH, -1, &events, &error));
        for (uint64_t i = 0; i < qwen_events_len(events); i++)
            streams -= !read_event(qwen_events_at(events, i), by);
        qwen_events_free(events);
    }
}

/* A thread that reads one stream. */
static void *follow(void *by) {
    pthread_setname_np(pthread_self(), READER);
    qwen_request *request = submit(NULL);
    for (int goes_on = 1; goes_on;) {
        qwen_event *event = NULL;
        check(qwen_request_next(request, -1, &event, &error));
        goes_on = read_event(event, by);
        qwen_event_free(event);
    }
    qwen_request_free(request);
    ((reader *)by)->cpu_ns = ns_by(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}

/* Reads all streams to their ends; the number of their tokens. */
static uint64_t read_all(qwen_queue *queue, long streams, uint64_t *bytes) {
    reader *all = calloc((size_t)streams, sizeof *all);
    uint64_t tokens = 0;
    if (queue != NULL)
        read_queue(queue, streams, all);
    for (long i = 0; queue == NULL && i < streams; i++)
        if (pthread_create(&all[i].thread, NULL, follow, &all[i]) != 0) {
            fprintf(stderr, "stream: no thread for stream %ld\n", i);
            exit(1);
        }
    for (long i = 0; i < streams; i++) {
        if (queue == NULL)
            pthread_join(all[i].thread, NULL);
        tokens += all[i].tokens, *bytes += all[i].bytes, ended_ns += all[i].cpu_ns;
    }
    free(all);
    return tokens;
}

int main(int argc, char **argv) {
    qwen_options *small = NULL;
    qwen_queue *queue = NULL;
    if (argc != 4 && !(argc == 5 && strcmp(argv[4], "threads") == 0)) {
        fprintf(stderr, "usage: stream MODEL STREAMS TOKENS [threads]\n");
        return 2;
    }
    const long streams = strtol(argv[2], NULL, 10), length = strtol(argv[3], NULL, 10);
    check(qwen_options_new("engine", QWEN_CSTR, &small, &error));
    check(qwen_options_merge_json(
        small,
        "{\"num_threads\": 1, \"kv_cache_tokens\": 262144, \"max_context_tokens\": 4096, "
        "\"max_batch_sequences\": 1024}",
        QWEN_CSTR, &error));
    check(qwen_engine_open(argv[1], QWEN_CSTR, small, NULL, NULL, &engine, &error));
    check(qwen_options_new("generation", QWEN_CSTR, &reply, &error));
    check(qwen_options_set_i64(reply, "max_tokens", QWEN_CSTR, length, &error));
    check(qwen_options_set_i64(reply, "ignore_eos", QWEN_CSTR, 1, &error));
    check(qwen_options_set_i64(reply, "temperature", QWEN_CSTR, 0, &error));
    if (argc == 4)
        check(qwen_queue_new(&queue, &error));

    uint64_t bytes = 0;
    read_all(queue, streams, &bytes);
    const double wall = ns_by(CLOCK_MONOTONIC), cpu = cpu_ns();
    const uint64_t tokens = read_all(queue, streams, &bytes);
    const double count = (double)tokens;
    const double took = ns_by(CLOCK_MONOTONIC) - wall, used = cpu_ns() - cpu;
    printf("%.0f %.0f %llu\n", took / count, used / count, (unsigned long long)tokens);
    return bytes == 0;
}
