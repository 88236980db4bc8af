/* life.c: beginnings and ends. Usage: life MODEL HOW, where HOW is
 *   exit     main returns in the middle of a generation, everything leaked
 *   quit     exit() from a callback
 *   thread   exit() while other threads are inside calls
 *   reopen   opens and closes an engine many times
 *   orders   frees handles in every order, requests running
 *   fork     calls in a forked child are refused, and the parent goes on */
#include "model.h"

#include <pthread.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static qwen_request *start(const qwen_engine *engine, int64_t max_tokens) {
    const uint32_t ids[] = {5, 6, 7};
    qwen_options *options = long_reply(max_tokens, 1);
    qwen_request *request = NULL;
    qwen_event *event = NULL;
    CHECK_OK(qwen_request_new_tokens(engine, ids, 3, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    CHECK_OK(qwen_request_next(request, -1, &event, &err));
    qwen_event_free(event), qwen_options_free(options);
    return request;
}

static int32_t quit(const qwen_event *event, void *user) {
    (void)event, (void)user;
    exit(0);
}

static void *chat_for_ever(void *user) {
    qwen_options *options = long_reply(1500, 1);
    qwen_session *session = new_session(user);
    while (qwen_session_chat(session, "x", 1, options, NULL, NULL, NULL) == QWEN_OK)
        (void)qwen_session_truncate(session, 0, NULL);
    return NULL;
}

static void exit_while_threads_chat(qwen_engine *engine) {
    pthread_t thread;
    for (int at = 0; at < 4; ++at)
        CHECK(pthread_create(&thread, NULL, chat_for_ever, engine) == 0);
    qwen_request_free(start(engine, 200));
    exit(0);
}

static int32_t free_it(const qwen_event *event, void *request) {
    (void)event;
    qwen_request_free(*(qwen_request **)request); /* the second time it is NULL */
    *(qwen_request **)request = NULL;
    return QWEN_CONTINUE;
}

static void free_while_it_is_read(const char *folder) {
    qwen_engine *engine = open_engine(folder, SMALL);
    qwen_request *request = start(engine, 1500);
    CHECK_FAILS(QWEN_E_CANCELLED, qwen_request_run(request, free_it, &request, &err));
    CHECK(request == NULL);
    qwen_engine_free(engine);
}

/* Until it fails, as it does when the request is freed. */
static void *read_to_the_end(void *request) {
    static int32_t status;
    status = qwen_request_run(request, NULL, NULL, NULL);
    return &status;
}

static void free_while_another_reads(const char *folder) {
    qwen_engine *engine = open_engine(folder, SMALL);
    qwen_request *request = start(engine, 1500);
    pthread_t thread;
    void *status = NULL;
    CHECK(pthread_create(&thread, NULL, read_to_the_end, request) == 0);
    /* It has begun to read: a call on a freed handle is nobody's to make. */
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    qwen_request_free(request);
    CHECK(pthread_join(thread, &status) == 0 && *(int32_t *)status == QWEN_E_CANCELLED);
    qwen_engine_free(engine);
}

static void reopen(const char *folder) {
    for (int round = 0; round < 30; ++round) {
        qwen_engine *engine = open_engine(folder, SMALL);
        qwen_request *request = start(engine, 200);
        if (round % 2)
            CHECK_OK(qwen_engine_shutdown(engine, QWEN_SHUTDOWN_CANCEL, -1, &err));
        qwen_engine_free(engine);
        qwen_request_free(request);
    }
}

/* Three handles, all six orders of freeing them. */
static void free_in_every_order(const char *folder) {
    const char *orders[] = {"esr", "ers", "ser", "sre", "res", "rse"};
    for (int order = 0; order < 6; ++order) {
        qwen_engine *engine = open_engine(folder, SMALL);
        qwen_session *session = new_session(engine);
        qwen_request *request = start(engine, 500);
        for (const char *next = orders[order]; *next; ++next) {
            if (*next == 'e')
                qwen_engine_free(engine);
            if (*next == 's')
                qwen_session_free(session);
            if (*next == 'r')
                qwen_request_free(request);
        }
    }
}

/* In the child: everything is refused, nothing hangs, and a new engine works. */
static int child(const char *folder, qwen_engine *engine, qwen_session *session,
                 qwen_request *request) {
    qwen_event *event = NULL;
    qwen_session *made = NULL;
    alarm(60); /* ends the child if a call hangs */
    CHECK_FAILS(QWEN_E_FORKED, qwen_engine_health(engine, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_session_new(engine, NULL, &made, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_session_chat(session, "x", 1, NULL, NULL, NULL, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_session_cancel(session, QWEN_STOP, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_request_next(request, -1, &event, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_request_run(request, NULL, NULL, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_request_submit(request, NULL, 0, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_request_cancel(request, QWEN_STOP, &err));
    CHECK_FAILS(QWEN_E_FORKED, qwen_engine_shutdown(engine, QWEN_SHUTDOWN_CANCEL, -1, &err));
    qwen_request_free(request), qwen_session_free(session), qwen_engine_free(engine);
    engine = open_engine(folder, SMALL);
    session = new_session(engine);
    CHECK_OK(qwen_session_chat(session, "x", 1, NULL, NULL, NULL, &err));
    qwen_session_free(session), qwen_engine_free(engine);
    return 0;
}

static void fork_in_the_middle(const char *folder) {
    qwen_engine *engine = open_engine(folder, SMALL);
    for (int round = 0; round < 5; ++round) {
        qwen_session *session = new_session(engine);
        qwen_request *request = start(engine, 1500);
        int status = -1;
        const pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            _exit(child(folder, engine, session, request));
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK_OK(qwen_request_cancel(request, QWEN_STOP, &err));
        CHECK_OK(qwen_request_run(request, NULL, NULL, &err));
        CHECK_OK(qwen_session_chat(session, "x", 1, NULL, NULL, NULL, &err));
        qwen_request_free(request), qwen_session_free(session);
    }
    qwen_engine_free(engine);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    const char *folder = argv[1], *how = argv[2];
    if (strcmp(how, "reopen") == 0)
        return reopen(folder), 0;
    if (strcmp(how, "orders") == 0)
        return free_in_every_order(folder), free_while_it_is_read(folder),
               free_while_another_reads(folder), 0;
    if (strcmp(how, "fork") == 0)
        return fork_in_the_middle(folder), 0;
    qwen_engine *engine = open_engine(folder, SMALL);
    if (strcmp(how, "thread") == 0)
        exit_while_threads_chat(engine);
    if (strcmp(how, "quit") == 0)
        (void)qwen_session_chat(new_session(engine), "x", 1, NULL, quit, NULL, NULL);
    CHECK(strcmp(how, "exit") == 0);
    (void)start(engine, 1500);
    return 0;
}
