/* log.c: log lines on their way to Java.
 *
 * The library's threads leave their lines here and never enter Java: a thread of Java's fetches them,
 * by logNext. A reader that is slow, or gone, costs lines and not memory. */
#define _POSIX_C_SOURCE 200809L
#include "glue.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Most lines that wait; those beyond are counted, and told of in one line. */
enum { LIMIT = 4096 };

typedef struct line {
    struct line *next;
    int32_t level;
    uint64_t target_len, message_len;
    char texts[]; /* target, message */
} line;

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t news;
    line *first, **end;
    int held, lost;
    /* Java, and the library while it may still log. The last one frees. */
    int owners;
    bool java_left;
} line_queue;

static void free_lines(line_queue *log) {
    while (log->first != NULL) {
        line *first = log->first;
        log->first = first->next;
        free(first);
    }
    log->end = &log->first;
    log->held = 0;
}

/* Called with the mutex, which it gives back. */
static void leave(line_queue *log) {
    const bool last = --log->owners == 0;
    pthread_cond_signal(&log->news);
    pthread_mutex_unlock(&log->mutex);
    if (!last)
        return;
    free_lines(log);
    pthread_cond_destroy(&log->news);
    pthread_mutex_destroy(&log->mutex);
    free(log);
}

static void on_line(int32_t level, const char *target, const char *message, uint64_t message_len,
                    void *user) {
    line_queue *log = user;
    const size_t target_len = strlen(target);
    line *made = malloc(sizeof *made + target_len + (size_t)message_len);
    if (made != NULL) {
        made->next = NULL;
        made->level = level;
        made->target_len = target_len;
        made->message_len = message_len;
        memcpy(made->texts, target, target_len);
        memcpy(made->texts + target_len, message, (size_t)message_len);
    }
    pthread_mutex_lock(&log->mutex);
    if (made == NULL || log->held == LIMIT || log->java_left) {
        log->lost++;
        free(made);
    } else {
        *log->end = made;
        log->end = &made->next;
        log->held++;
        pthread_cond_signal(&log->news);
    }
    pthread_mutex_unlock(&log->mutex);
}

static void on_last_line(void *user) {
    line_queue *log = user;
    pthread_mutex_lock(&log->mutex);
    leave(log);
}

bool qj_set_log(JNIEnv *env, qwen_options *options, int32_t level, jlong number) {
    line_queue *log = OBJECT(line_queue, number);
    pthread_mutex_lock(&log->mutex);
    log->owners++;
    pthread_mutex_unlock(&log->mutex);
    qwen_error *err = NULL;
    int32_t status = qwen_options_set_log(options, level, on_line, log, on_last_line, &err);
    if (status != QWEN_OK) {
        pthread_mutex_lock(&log->mutex);
        leave(log);
    }
    return qj_ok(env, status, err);
}

NATIVE(jlong, logNew)(JNIEnv *env, jclass class) {
    (void)class;
    line_queue *log = calloc(1, sizeof *log);
    if (log == NULL || pthread_mutex_init(&log->mutex, NULL) != 0) {
        free(log);
        qj_throw_no_memory(env);
        return 0;
    }
    if (pthread_cond_init(&log->news, NULL) != 0) {
        pthread_mutex_destroy(&log->mutex);
        free(log);
        qj_throw_no_memory(env);
        return 0;
    }
    log->end = &log->first;
    log->owners = 1;
    return NUMBER(log);
}

/* Waits for a line: its level (4 bytes), the length of its target (4), target and message. NULL when
 * there will be none: once the library has let the log go, or if it never got it. */
NATIVE(jbyteArray, logNext)(JNIEnv *env, jclass class, jlong number) {
    (void)class;
    line_queue *log = OBJECT(line_queue, number);
    pthread_mutex_lock(&log->mutex);
    while (log->first == NULL && log->owners > 1)
        pthread_cond_wait(&log->news, &log->mutex);
    line *first = log->first;
    if (first != NULL) {
        log->first = first->next;
        log->held--;
        if (log->first == NULL)
            log->end = &log->first;
    }
    pthread_mutex_unlock(&log->mutex);
    if (first == NULL)
        return NULL;
    const uint64_t size = 8 + first->target_len + first->message_len;
    const int32_t head[2] = {first->level, (int32_t)first->target_len};
    jbyteArray array = size > INT32_MAX ? NULL : (*env)->NewByteArray(env, (jsize)size);
    if (array != NULL) {
        (*env)->SetByteArrayRegion(env, array, 0, 8, (const jbyte *)head);
        if (!(*env)->ExceptionCheck(env))
            (*env)->SetByteArrayRegion(env, array, 8, (jsize)(size - 8),
                                       (const jbyte *)first->texts);
    }
    free(first);
    return array;
}

/* The number of lines that were lost since the last call. */
NATIVE(jint, logLost)(JNIEnv *env, jclass class, jlong number) {
    (void)env, (void)class;
    line_queue *log = OBJECT(line_queue, number);
    pthread_mutex_lock(&log->mutex);
    const int lost = log->lost;
    log->lost = 0;
    pthread_mutex_unlock(&log->mutex);
    return lost;
}

/* Lets the log go; nobody may be inside logNext. */
NATIVE(void, logFree)(JNIEnv *env, jclass class, jlong number) {
    (void)env, (void)class;
    line_queue *log = OBJECT(line_queue, number);
    pthread_mutex_lock(&log->mutex);
    log->java_left = true;
    leave(log);
}
