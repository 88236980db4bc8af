/* session.c: conversations: streaming, the three answers of a callback, calls from inside one,
 * another thread's call, history. Usage: session MODEL */
#include "model.h"
#include "utf8.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

/* What a callback saw, and what it does. */
typedef struct {
    qwen_session *session;
    int answer_at, answer; /* gives `answer` at event number `answer_at`, counted from 1 */
    int events, started, finished;
    uint64_t text_bytes, tokens;
    qwen_usage usage;
    int32_t inner_status;
    int frees, cancels;
} seen;

/* A program compiled before qwen_usage had cached_tokens: what stands behind its struct is its own. */
static void old_callers_get_what_they_know(const qwen_event *event) {
    const uint32_t old_bytes = offsetof(qwen_usage, cached_tokens);
    qwen_usage usage = {old_bytes, 0, 0, 0, 77};
    CHECK_OK(qwen_event_usage(event, &usage, &err));
    CHECK(usage.struct_size == old_bytes && usage.prompt_tokens > 5 && usage.cached_tokens == 77);
    usage.struct_size = old_bytes - 1;
    CHECK_FAILS(QWEN_E_ARG, qwen_event_usage(event, &usage, &err));
}

static int32_t watch(const qwen_event *event, void *user) {
    seen *all = user;
    uint64_t text_bytes = 0, num_ids = 0;
    const char *text = qwen_event_text(event, &text_bytes);
    CHECK(is_utf8(text, text_bytes) && text[text_bytes] == '\0');
    qwen_event_tokens(event, &num_ids);
    all->text_bytes += text_bytes;
    all->tokens += num_ids;
    all->started += qwen_event_kind(event) == QWEN_EVENT_STARTED;
    if (qwen_event_kind(event) == QWEN_EVENT_FINISHED) {
        CHECK(qwen_event_finish_reason(event) != 0 && qwen_event_error(event) == NULL);
        all->usage.struct_size = sizeof all->usage;
        CHECK_OK(qwen_event_usage(event, &all->usage, &err));
        CHECK(all->usage.struct_size == sizeof all->usage);
        old_callers_get_what_they_know(event);
        all->finished += 1;
    }
    if (++all->events != all->answer_at)
        return QWEN_CONTINUE;
    if (all->cancels)
        CHECK_OK(qwen_session_cancel(all->session, QWEN_CANCEL, &err));
    if (all->session && !all->frees)
        all->inner_status = qwen_session_truncate(all->session, 0, NULL);
    if (all->frees)
        qwen_session_free(all->session);
    return all->answer;
}

static int num_messages(const qwen_session *session) {
    qwen_buf *json = NULL;
    int count = 0;
    CHECK_OK(qwen_session_messages_json(session, &json, &err));
    for (const char *at = qwen_buf_data(json); (at = strstr(at, "\"role\":")) != NULL; ++at)
        ++count;
    qwen_buf_free(json);
    return count;
}

static int32_t say(qwen_session *session, const qwen_options *options, seen *all) {
    return qwen_session_chat(session, "hello", QWEN_CSTR, options, watch, all, NULL);
}

static void a_reply_streams_and_is_remembered(const qwen_engine *engine) {
    qwen_options *options = long_reply(50, 1);
    qwen_session *session = new_session(engine);
    qwen_buf *reply = NULL;
    seen all = {0}, again = {0};
    CHECK_FAILS(QWEN_E_STATE, qwen_session_reply(session, &reply, &err));
    CHECK(reply == NULL);
    CHECK_FAILS(QWEN_E_STATE, qwen_session_regenerate(session, options, NULL, NULL, &err));
    CHECK(say(session, options, &all) == QWEN_OK);
    CHECK(all.started == 1 && all.finished == 1);
    CHECK(all.tokens == 50 && all.usage.completion_tokens == 50 && all.usage.prompt_tokens > 5);
    CHECK_OK(qwen_session_reply(session, &reply, &err));
    CHECK(qwen_buf_len(reply) == all.text_bytes);
    CHECK(num_messages(session) == 3); /* system, user, assistant */
    CHECK_OK(qwen_session_regenerate(session, options, watch, &again, &err));
    CHECK(again.text_bytes == all.text_bytes && num_messages(session) == 3); /* the same seed */
    CHECK_OK(qwen_session_chat(session, "and", 3, options, NULL, NULL, &err));
    CHECK(num_messages(session) == 5);
    CHECK(again.usage.cached_tokens >= 16); /* the first turn has computed its beginning */
    CHECK_OK(qwen_session_truncate(session, 1, &err));
    CHECK(num_messages(session) == 3);
    qwen_buf_free(reply), qwen_session_free(session), qwen_options_free(options);
}

static void a_callback_ends_the_reply(const qwen_engine *engine) {
    const struct {
        int answer;
        int32_t status;
        int messages;
    } cases[] = {
        {QWEN_STOP, QWEN_OK, 3},
        {QWEN_CANCEL, QWEN_E_CANCELLED, 1},
        {17, QWEN_E_CALLBACK, 1},
        {-1, QWEN_E_CALLBACK, 1},
    };
    qwen_options *options = long_reply(1500, 1);
    for (unsigned at = 0; at < sizeof cases / sizeof *cases; ++at) {
        qwen_session *session = new_session(engine);
        seen all = {0};
        all.answer_at = 3, all.answer = cases[at].answer;
        CHECK(say(session, options, &all) == cases[at].status);
        CHECK(all.events == 3); /* it is never called again */
        CHECK(num_messages(session) == cases[at].messages);
        qwen_session_free(session);
    }
    qwen_options_free(options);
}

static void a_callback_may_cancel_and_free_but_not_use(const qwen_engine *engine) {
    qwen_options *options = long_reply(1500, 1);
    qwen_session *session = new_session(engine);
    seen inner = {0}, cancels = {0}, frees = {0};
    inner.session = session, inner.answer_at = 2, inner.answer = QWEN_STOP;
    CHECK(say(session, options, &inner) == QWEN_OK);
    CHECK(inner.inner_status == QWEN_E_REENTRANT && num_messages(session) == 3);
    cancels.session = session, cancels.answer_at = 2, cancels.cancels = 1;
    CHECK(say(session, options, &cancels) == QWEN_E_CANCELLED);
    CHECK(num_messages(session) == 3);
    frees.session = session, frees.answer_at = 2, frees.frees = 1, frees.answer = QWEN_CANCEL;
    CHECK(say(session, options, &frees) == QWEN_E_CANCELLED);
    qwen_options_free(options);
}

/* For another thread: calls the session that is in a call. */
static void *intrude(void *user) {
    seen *all = user;
    CHECK_FAILS(QWEN_E_BUSY, qwen_session_truncate(all->session, 0, &err));
    CHECK_FAILS(QWEN_E_BUSY, qwen_session_chat(all->session, "x", 1, NULL, NULL, NULL, &err));
    CHECK_OK(qwen_session_cancel(all->session, QWEN_STOP, &err)); /* this one may */
    return NULL;
}

static int32_t let_intrude(const qwen_event *event, void *user) {
    seen *all = user;
    pthread_t thread;
    (void)event;
    if (all->events++ == 0) {
        CHECK(pthread_create(&thread, NULL, intrude, user) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    return QWEN_CONTINUE;
}

static void a_second_thread_is_told(const qwen_engine *engine) {
    qwen_options *options = long_reply(1500, 1);
    qwen_session *session = new_session(engine);
    seen all = {0};
    all.session = session;
    CHECK_OK(qwen_session_chat(session, "x", 1, options, let_intrude, &all, &err));
    CHECK(num_messages(session) == 3); /* stopped by the other thread, and kept */
    CHECK_FAILS(QWEN_E_ARG, qwen_session_cancel(session, 0, &err));
    qwen_session_free(session), qwen_options_free(options);
}

static void history_goes_in_and_out(const qwen_engine *engine) {
    const char *turns = "[{\"role\":\"system\",\"content\":\"Be \\u0000brief.\"},"
                        "{\"role\":\"user\",\"content\":\"\xe4\xbd\xa0\xe5\xa5\xbd\"},"
                        "{\"role\":\"assistant\",\"content\":\"<|im_end|>\"}]";
    qwen_session *session = new_session(engine);
    qwen_buf *json = NULL;
    CHECK_FAILS(QWEN_E_ARG, qwen_session_append_json(session, "{}", 2, &err));
    CHECK_FAILS(QWEN_E_ARG,
                qwen_session_append_json(session, "[{\"role\":\"assistant\",\"content\":\"x\"}]",
                                         QWEN_CSTR, &err));
    CHECK_FAILS(QWEN_E_UTF8, qwen_session_append_json(session, "\xff", 1, &err));
    CHECK(num_messages(session) == 1);
    CHECK_OK(qwen_session_append_json(session, turns, QWEN_CSTR, &err));
    CHECK_OK(qwen_session_messages_json(session, &json, &err));
    CHECK(strcmp(qwen_buf_data(json), turns) == 0);
    qwen_buf_free(json);
    CHECK_FAILS(QWEN_E_UTF8, qwen_session_set_system(session, "a\xc0", 2, &err));
    CHECK_OK(qwen_session_set_system(session, NULL, 0, &err));
    qwen_session_free(session);
}

/* A user message without a reply, an edit, a fork: and each conversation goes its own way. */
static void history_is_edited_and_forked(const qwen_engine *engine) {
    qwen_options *options = long_reply(5, 1);
    qwen_session *session = new_session(engine), *fork = NULL;
    qwen_buf *json = NULL;
    CHECK_OK(qwen_session_append_json(session, "[{\"role\":\"user\",\"content\":\"x\"}]",
                                      QWEN_CSTR, &err));
    CHECK_FAILS(QWEN_E_STATE, qwen_session_chat(session, "y", 1, options, NULL, NULL, &err));
    CHECK_OK(qwen_session_regenerate(session, options, NULL, NULL, &err));
    CHECK(num_messages(session) == 3);
    CHECK_OK(qwen_session_fork(session, &fork, &err));
    CHECK_OK(qwen_session_edit(fork, 1, "edited", QWEN_CSTR, &err));
    CHECK_FAILS(QWEN_E_ARG, qwen_session_edit(fork, 3, "z", 1, &err));
    CHECK_FAILS(QWEN_E_UTF8, qwen_session_edit(fork, 1, "\xff", 1, &err));
    CHECK_OK(qwen_session_chat(fork, "y", 1, options, NULL, NULL, &err));
    CHECK(num_messages(fork) == 5 && num_messages(session) == 3);
    CHECK_OK(qwen_session_messages_json(fork, &json, &err));
    CHECK(strstr(qwen_buf_data(json), "\"edited\"") != NULL);
    qwen_buf_free(json), qwen_session_free(session), qwen_session_free(fork);
    qwen_options_free(options);
}

static void a_saved_session_comes_back_whole_or_not_at_all(const qwen_engine *engine) {
    qwen_session *session = new_session(engine), *other = new_session(engine);
    qwen_buf *saved = NULL;
    uint8_t bytes[512];
    CHECK_OK(qwen_session_set_system(session, "Be brief.", QWEN_CSTR, &err));
    CHECK_OK(qwen_session_save(session, &saved, &err));
    const uint64_t len = qwen_buf_len(saved);
    CHECK(len < sizeof bytes);
    memcpy(bytes, qwen_buf_data(saved), len);
    for (uint64_t at = 0; at < len; ++at) { /* in a block of its own size, for the sanitizer */
        uint8_t *cut = malloc(at);
        memcpy(cut, bytes, at);
        CHECK_FAILS(QWEN_E_CORRUPT, qwen_session_load(other, cut, at, &err));
        free(cut);
        bytes[at] ^= 0x10;
        CHECK_FAILS(at / 4 == 2 ? QWEN_E_STATE_MISMATCH : QWEN_E_CORRUPT,
                    qwen_session_load(other, bytes, len, &err));
        bytes[at] ^= 0x10;
    }
    CHECK_FAILS(QWEN_E_NULL, qwen_session_load(other, NULL, 1, &err));
    CHECK_OK(qwen_session_load(other, bytes, len, &err));
    qwen_buf_free(saved), saved = NULL;
    CHECK_OK(qwen_session_messages_json(other, &saved, &err));
    CHECK(strcmp(qwen_buf_data(saved), "[{\"role\":\"system\",\"content\":\"Be brief.\"}]") == 0);
    qwen_buf_free(saved), qwen_session_free(session), qwen_session_free(other);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    qwen_engine *engine = open_engine(argv[1], SMALL);
    a_reply_streams_and_is_remembered(engine);
    a_callback_ends_the_reply(engine);
    a_callback_may_cancel_and_free_but_not_use(engine);
    a_second_thread_is_told(engine);
    history_goes_in_and_out(engine);
    history_is_edited_and_forked(engine);
    a_saved_session_comes_back_whole_or_not_at_all(engine);
    qwen_engine_free(engine);
    return 0;
}
