/* engine.c: engines, requests, scores and embeddings. */
#include "glue.h"
#include <stdlib.h>

typedef struct {
    JNIEnv *env;
    jobject listener;
} progress_call;

/* On the thread that opens, which came from Java. What the listener throws stays pending. */
static int32_t on_progress(const qwen_load_progress *progress, void *user) {
    const progress_call *call = user;
    JNIEnv *env = call->env;
    if ((*env)->ExceptionCheck(env))
        return QWEN_CANCEL;
    (*env)->CallVoidMethod(env, call->listener, qj_on_progress, (jlong)progress->done_bytes,
                           (jlong)progress->total_bytes);
    return (*env)->ExceptionCheck(env) ? QWEN_CANCEL : QWEN_CONTINUE;
}

NATIVE(jlong, engineOpen)(JNIEnv *env, jclass class, jbyteArray folder, jbyteArray json, jlong log,
                          jint level, jobject listener) {
    (void)class;
    qj_bytes path = {NULL, 0};
    qwen_options *options = NULL;
    qwen_engine *engine = NULL;
    if (!qj_take_options(env, "engine", json, &options))
        return 0;
    if ((log == 0 || qj_set_log(env, options, level, log)) && qj_take_bytes(env, folder, &path)) {
        progress_call call = {env, listener};
        qwen_error *err = NULL;
        qwen_progress_fn told = listener == NULL ? NULL : on_progress;
        int32_t status =
            qwen_engine_open(path.data, path.len, options, told, &call, &engine, &err);
        if ((*env)->ExceptionCheck(env)) {
            qwen_error_free(err);
            qwen_engine_free(engine);
            engine = NULL;
        } else {
            qj_ok(env, status, err);
        }
    }
    free(path.data);
    qwen_options_free(options);
    return NUMBER(engine);
}

NATIVE(jbyteArray, engineEstimate)(JNIEnv *env, jclass class, jbyteArray folder, jbyteArray json) {
    (void)class;
    qj_bytes path;
    qwen_options *options = NULL;
    if (!qj_take_options(env, "engine", json, &options))
        return NULL;
    jbyteArray array = NULL;
    if (qj_take_bytes(env, folder, &path)) {
        qwen_buf *buf = NULL;
        qwen_error *err = NULL;
        int32_t status = qwen_engine_estimate_json(path.data, path.len, options, &buf, &err);
        free(path.data);
        array = qj_give_buf(env, status, buf, err);
    }
    qwen_options_free(options);
    return array;
}

typedef int32_t (*question)(const qwen_engine *, qwen_buf **, qwen_error **);

static jbyteArray ask(JNIEnv *env, jlong engine, question function) {
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = function(OBJECT(qwen_engine, engine), &buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, engineInfo)(JNIEnv *env, jclass class, jlong engine) {
    (void)class;
    return ask(env, engine, qwen_engine_info_json);
}

NATIVE(jbyteArray, engineMetrics)(JNIEnv *env, jclass class, jlong engine) {
    (void)class;
    return ask(env, engine, qwen_engine_metrics_json);
}

NATIVE(jbyteArray, engineMetricsPrometheus)(JNIEnv *env, jclass class, jlong engine,
                                            jbyteArray model) {
    (void)class;
    qj_bytes name;
    if (!qj_take_bytes(env, model, &name))
        return NULL;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_engine_metrics_prometheus(OBJECT(qwen_engine, engine), name.data,
                                                    name.len, &buf, &err);
    free(name.data);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, engineGeneration)(JNIEnv *env, jclass class, jlong engine) {
    (void)class;
    return ask(env, engine, qwen_engine_generation_json);
}

NATIVE(void, engineHealth)(JNIEnv *env, jclass class, jlong engine) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_engine_health(OBJECT(qwen_engine, engine), &err);
    qj_ok(env, status, err);
}

/* Whether it has ended in time. */
NATIVE(jboolean, engineShutdown)(JNIEnv *env, jclass class, jlong engine, jint how,
                                 jlong timeout_ms) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_engine_shutdown(OBJECT(qwen_engine, engine), how, timeout_ms, &err);
    if (status == QWEN_E_TIMEOUT) {
        qwen_error_free(err);
        return JNI_FALSE;
    }
    return qj_ok(env, status, err) ? JNI_TRUE : JNI_FALSE;
}

NATIVE(void, engineFree)(JNIEnv *env, jclass class, jlong engine) {
    (void)env, (void)class;
    qwen_engine_free(OBJECT(qwen_engine, engine));
}

NATIVE(jlong, requestNewChat)(JNIEnv *env, jclass class, jlong engine, jbyteArray messages,
                              jbyteArray json) {
    (void)class;
    qj_bytes text;
    qwen_options *options = NULL;
    qwen_request *request = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return 0;
    if (qj_take_bytes(env, messages, &text)) {
        qwen_error *err = NULL;
        int32_t status = qwen_request_new_chat(OBJECT(qwen_engine, engine), text.data, text.len,
                                               options, &request, &err);
        free(text.data);
        qj_ok(env, status, err);
    }
    qwen_options_free(options);
    return NUMBER(request);
}

NATIVE(jlong, requestNewTokens)(JNIEnv *env, jclass class, jlong engine, jintArray tokens,
                                jbyteArray json) {
    (void)class;
    qj_ids ids;
    qwen_options *options = NULL;
    qwen_request *request = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return 0;
    if (qj_take_ids(env, tokens, &ids)) {
        qwen_error *err = NULL;
        int32_t status = qwen_request_new_tokens(OBJECT(qwen_engine, engine), ids.data, ids.len,
                                                 options, &request, &err);
        free(ids.data);
        qj_ok(env, status, err);
    }
    qwen_options_free(options);
    return NUMBER(request);
}

NATIVE(void, requestSubmit)(JNIEnv *env, jclass class, jlong request, jlong queue, jlong tag) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_request_submit(OBJECT(qwen_request, request), OBJECT(qwen_queue, queue),
                                         (uint64_t)tag, &err);
    qj_ok(env, status, err);
}

NATIVE(void, requestCancel)(JNIEnv *env, jclass class, jlong request, jint how) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_request_cancel(OBJECT(qwen_request, request), how, &err);
    qj_ok(env, status, err);
}

NATIVE(void, requestFree)(JNIEnv *env, jclass class, jlong request) {
    (void)env, (void)class;
    qwen_request_free(OBJECT(qwen_request, request));
}

NATIVE(jbyteArray, score)(JNIEnv *env, jclass class, jlong engine, jbyteArray context,
                          jbyteArray continuation, jbyteArray json) {
    (void)class;
    qj_bytes before = {NULL, 0}, after = {NULL, 0};
    qwen_options *options = NULL;
    jbyteArray array = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return NULL;
    if (qj_take_bytes(env, context, &before) && qj_take_bytes(env, continuation, &after)) {
        qwen_buf *buf = NULL;
        qwen_error *err = NULL;
        int32_t status = qwen_score(OBJECT(qwen_engine, engine), before.data, before.len,
                                    after.data, after.len, options, &buf, &err);
        array = qj_give_buf(env, status, buf, err);
    }
    free(before.data);
    free(after.data);
    qwen_options_free(options);
    return array;
}

NATIVE(jbyteArray, scoreTokens)(JNIEnv *env, jclass class, jlong engine, jintArray context,
                                jintArray continuation, jbyteArray json) {
    (void)class;
    qj_ids before = {NULL, 0}, after = {NULL, 0};
    qwen_options *options = NULL;
    jbyteArray array = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return NULL;
    if (qj_take_ids(env, context, &before) && qj_take_ids(env, continuation, &after)) {
        qwen_buf *buf = NULL;
        qwen_error *err = NULL;
        int32_t status = qwen_score_tokens(OBJECT(qwen_engine, engine), before.data, before.len,
                                           after.data, after.len, options, &buf, &err);
        array = qj_give_buf(env, status, buf, err);
    }
    free(before.data);
    free(after.data);
    qwen_options_free(options);
    return array;
}

NATIVE(jfloatArray, embed)(JNIEnv *env, jclass class, jlong engine, jbyteArray text, jint pooling,
                           jboolean normalize, jbyteArray json) {
    (void)class;
    qj_bytes said;
    qwen_options *options = NULL;
    jfloatArray array = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return NULL;
    if (qj_take_bytes(env, text, &said)) {
        qwen_floats *states = NULL;
        qwen_error *err = NULL;
        int32_t status = qwen_embed(OBJECT(qwen_engine, engine), said.data, said.len, pooling,
                                    normalize, options, &states, &err);
        free(said.data);
        array = qj_give_floats(env, status, states, err);
    }
    qwen_options_free(options);
    return array;
}

NATIVE(jfloatArray, embedTokens)(JNIEnv *env, jclass class, jlong engine, jintArray tokens,
                                 jint pooling, jboolean normalize, jbyteArray json) {
    (void)class;
    qj_ids ids;
    qwen_options *options = NULL;
    jfloatArray array = NULL;
    if (!qj_take_options(env, "generation", json, &options))
        return NULL;
    if (qj_take_ids(env, tokens, &ids)) {
        qwen_floats *states = NULL;
        qwen_error *err = NULL;
        int32_t status = qwen_embed_tokens(OBJECT(qwen_engine, engine), ids.data, ids.len, pooling,
                                           normalize, options, &states, &err);
        free(ids.data);
        array = qj_give_floats(env, status, states, err);
    }
    qwen_options_free(options);
    return array;
}
