/* What a streamed token costs in plain C, which the bindings are compared with:
 *
 *   stream MODEL STREAMS TOKENS
 *
 * Submits that many requests of that many tokens to one completion queue and reads every event's
 * text and ids: once for what only the first time costs, and once more to print the wall time, and
 * the CPU time of all threads but the engine's, in nanoseconds a token. The model should be tiny:
 * what is measured is everything else. bindings/go/bench does the same. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <qwen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const MESSAGES = "[{\"role\": \"user\", \"content\": \"hello\"}]";
enum { BATCH = 128 };

static qwen_error *error;

static void check(int32_t status) {
    if (status != QWEN_OK) {
        fprintf(stderr, "stream: %s\n", qwen_error_message(error));
        exit(1);
    }
}

static double wall_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* The CPU time of all threads but the library's own: what reading costs, whatever the engine does. */
static double cpu_ns(void) {
    double total = 0;
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
        if (file != NULL && fscanf(file, "%lf", &spent) == 1 && strncmp(name, "qwen-", 5) != 0)
            total += spent;
        if (file != NULL)
            fclose(file);
    }
    if (tasks != NULL)
        closedir(tasks);
    return total;
}

static void submit_all(qwen_engine *engine, qwen_options *reply, qwen_queue *queue, long streams) {
    for (long i = 0; i < streams; i++) {
        qwen_request *request = NULL;
        check(qwen_request_new_chat(engine, MESSAGES, QWEN_CSTR, reply, &request, &error));
        check(qwen_request_submit(request, queue, (uint64_t)i, &error));
        /* Freed at the end of the process: freeing it now would cancel it. */
    }
}

/* Reads events until all streams have ended; returns the number of their tokens. */
static uint64_t read_all(qwen_queue *queue, long streams, uint64_t *bytes) {
    uint64_t tokens = 0;
    while (streams > 0) {
        qwen_events *events = NULL;
        check(qwen_queue_next(queue, BATCH, -1, &events, &error));
        for (uint64_t i = 0; i < qwen_events_len(events); i++) {
            const qwen_event *event = qwen_events_at(events, i);
            uint64_t length = 0, num_ids = 0;
            qwen_event_text(event, &length);
            qwen_event_tokens(event, &num_ids);
            *bytes += length;
            tokens += num_ids;
            streams -= qwen_event_kind(event) >= QWEN_EVENT_FINISHED;
        }
        qwen_events_free(events);
    }
    return tokens;
}

int main(int argc, char **argv) {
    qwen_options *small = NULL, *reply = NULL;
    qwen_engine *engine = NULL;
    qwen_queue *queue = NULL;
    if (argc != 4) {
        fprintf(stderr, "usage: stream MODEL STREAMS TOKENS\n");
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
    check(qwen_queue_new(&queue, &error));

    uint64_t bytes = 0;
    submit_all(engine, reply, queue, streams);
    read_all(queue, streams, &bytes);
    const double wall = wall_ns(), cpu = cpu_ns();
    submit_all(engine, reply, queue, streams);
    const uint64_t tokens = read_all(queue, streams, &bytes);
    const double count = (double)tokens;
    printf("%.0f %.0f %llu\n", (wall_ns() - wall) / count, (cpu_ns() - cpu) / count,
           (unsigned long long)tokens);
    return bytes == 0;
}
