/* session.c: sessions. */
#include "glue.h"
#include <stdlib.h>

NATIVE(jlong, sessionNew)(JNIEnv *env, jclass class, jlong engine, jbyteArray json) {
    (void)class;
    qwen_options *options = NULL;
    if (!qj_take_options(env, "session", json, &options))
        return 0;
    qwen_session *session = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_session_new(OBJECT(qwen_engine, engine), options, &session, &err);
    qwen_options_free(options);
    return qj_ok(env, status, err) ? NUMBER(session) : 0;
}

typedef struct {
    JNIEnv *env;
    jobject sink;
} reply_call;

/* On the thread that asked for the reply, which came from Java. */
static int32_t on_event(const qwen_event *event, void *user) {
    const reply_call *call = user;
    JNIEnv *env = call->env;
    if ((*env)->ExceptionCheck(env))
        return QWEN_CANCEL;
    qj_writer out = {NULL, 0, 0, false};
    qj_write_event(&out, event);
    jbyteArray array = qj_give_written(env, &out);
    if (array == NULL)
        return QWEN_CANCEL;
    (*env)->CallVoidMethod(env, call->sink, qj_on_event, array);
    int32_t result = (*env)->ExceptionCheck(env) ? QWEN_CANCEL : QWEN_CONTINUE;
    (*env)->DeleteLocalRef(env, array);
    return result;
}

/* `text` is the user's, or with `is_result` a tool's; NULL makes the last reply anew. */
NATIVE(void, sessionReplyTo)(JNIEnv *env, jclass class, jlong number, jbyteArray text,
                             jboolean is_result, jbyteArray json, jobject sink) {
    (void)class;
    qwen_session *session = OBJECT(qwen_session, number);
    qwen_options *options = NULL;
    qj_bytes said;
    if (!qj_take_options(env, "generation", json, &options))
        return;
    if (!qj_take_bytes(env, text, &said)) {
        qwen_options_free(options);
        return;
    }
    reply_call call = {env, sink};
    qwen_error *err = NULL;
    int32_t status;
    if (text == NULL)
        status = qwen_session_regenerate(session, options, on_event, &call, &err);
    else if (is_result)
        status = qwen_session_tool_result(session, said.data, said.len, options, on_event, &call,
                                          &err);
    else
        status = qwen_session_chat(session, said.data, said.len, options, on_event, &call, &err);
    free(said.data);
    qwen_options_free(options);
    if ((*env)->ExceptionCheck(env))
        qwen_error_free(err);
    else
        qj_ok(env, status, err);
}

NATIVE(void, sessionCancel)(JNIEnv *env, jclass class, jlong session, jint how) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_session_cancel(OBJECT(qwen_session, session), how, &err);
    qj_ok(env, status, err);
}

typedef int32_t (*question)(const qwen_session *, qwen_buf **, qwen_error **);

static jbyteArray ask(JNIEnv *env, jlong session, question function) {
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = function(OBJECT(qwen_session, session), &buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, sessionReply)(JNIEnv *env, jclass class, jlong session) {
    (void)class;
    return ask(env, session, qwen_session_reply);
}

NATIVE(jbyteArray, sessionMessages)(JNIEnv *env, jclass class, jlong session) {
    (void)class;
    return ask(env, session, qwen_session_messages_json);
}

NATIVE(jbyteArray, sessionSave)(JNIEnv *env, jclass class, jlong session) {
    (void)class;
    return ask(env, session, qwen_session_save);
}

NATIVE(void, sessionLoad)(JNIEnv *env, jclass class, jlong session, jbyteArray saved) {
    (void)class;
    qj_bytes state;
    if (!qj_take_bytes(env, saved, &state))
        return;
    qwen_error *err = NULL;
    int32_t status = qwen_session_load(OBJECT(qwen_session, session),
                                       (const uint8_t *)state.data, state.len, &err);
    free(state.data);
    qj_ok(env, status, err);
}

NATIVE(void, sessionAppend)(JNIEnv *env, jclass class, jlong session, jbyteArray messages) {
    (void)class;
    qj_bytes text;
    if (!qj_take_bytes(env, messages, &text))
        return;
    qwen_error *err = NULL;
    int32_t status =
        qwen_session_append_json(OBJECT(qwen_session, session), text.data, text.len, &err);
    free(text.data);
    qj_ok(env, status, err);
}

NATIVE(void, sessionTruncate)(JNIEnv *env, jclass class, jlong session, jlong num_turns) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status =
        qwen_session_truncate(OBJECT(qwen_session, session), (uint64_t)num_turns, &err);
    qj_ok(env, status, err);
}

/* NULL is the chat format's own. */
NATIVE(void, sessionSetSystem)(JNIEnv *env, jclass class, jlong session, jbyteArray system) {
    (void)class;
    qj_bytes text;
    if (!qj_take_bytes(env, system, &text))
        return;
    qwen_error *err = NULL;
    int32_t status =
        qwen_session_set_system(OBJECT(qwen_session, session), text.data, text.len, &err);
    free(text.data);
    qj_ok(env, status, err);
}

NATIVE(void, sessionEdit)(JNIEnv *env, jclass class, jlong session, jlong index,
                          jbyteArray content) {
    (void)class;
    qj_bytes text;
    if (!qj_take_bytes(env, content, &text))
        return;
    qwen_error *err = NULL;
    int32_t status = qwen_session_edit(OBJECT(qwen_session, session), (uint64_t)index, text.data,
                                       text.len, &err);
    free(text.data);
    qj_ok(env, status, err);
}

NATIVE(jlong, sessionFork)(JNIEnv *env, jclass class, jlong session) {
    (void)class;
    qwen_session *fork = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_session_fork(OBJECT(qwen_session, session), &fork, &err);
    return qj_ok(env, status, err) ? NUMBER(fork) : 0;
}

NATIVE(void, sessionFree)(JNIEnv *env, jclass class, jlong session) {
    (void)env, (void)class;
    qwen_session_free(OBJECT(qwen_session, session));
}
