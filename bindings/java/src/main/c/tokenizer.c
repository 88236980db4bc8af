/* tokenizer.c: tokenizers and detokenisers. */
#include "glue.h"
#include <stdlib.h>

NATIVE(jlong, tokenizerOpen)(JNIEnv *env, jclass class, jbyteArray folder) {
    (void)class;
    qj_bytes path;
    if (!qj_take_bytes(env, folder, &path))
        return 0;
    qwen_tokenizer *tokenizer = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_tokenizer_open(path.data, path.len, &tokenizer, &err);
    free(path.data);
    return qj_ok(env, status, err) ? NUMBER(tokenizer) : 0;
}

NATIVE(jlong, tokenizerOfEngine)(JNIEnv *env, jclass class, jlong engine) {
    (void)class;
    qwen_tokenizer *tokenizer = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_tokenizer_of_engine(OBJECT(qwen_engine, engine), &tokenizer, &err);
    return qj_ok(env, status, err) ? NUMBER(tokenizer) : 0;
}

NATIVE(jintArray, tokenizerEncode)(JNIEnv *env, jclass class, jlong tokenizer, jbyteArray plain,
                                   jint flags) {
    (void)class;
    qj_bytes text;
    if (!qj_take_bytes(env, plain, &text))
        return NULL;
    qwen_tokens *tokens = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_tokenizer_encode(OBJECT(qwen_tokenizer, tokenizer), text.data, text.len,
                                           (uint32_t)flags, &tokens, &err);
    free(text.data);
    return qj_give_tokens(env, status, tokens, err);
}

NATIVE(jbyteArray, tokenizerDecode)(JNIEnv *env, jclass class, jlong tokenizer, jintArray tokens,
                                    jint flags) {
    (void)class;
    qj_ids ids;
    if (!qj_take_ids(env, tokens, &ids))
        return NULL;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_tokenizer_decode(OBJECT(qwen_tokenizer, tokenizer), ids.data, ids.len,
                                           (uint32_t)flags, &buf, &err);
    free(ids.data);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, tokenizerTokenBytes)(JNIEnv *env, jclass class, jlong tokenizer, jint id) {
    (void)class;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status =
        qwen_tokenizer_token_bytes(OBJECT(qwen_tokenizer, tokenizer), (uint32_t)id, &buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jintArray, tokenizerRenderChat)(JNIEnv *env, jclass class, jlong tokenizer,
                                       jbyteArray messages, jlong window) {
    (void)class;
    qj_bytes text;
    if (!qj_take_bytes(env, messages, &text))
        return NULL;
    qwen_tokens *tokens = NULL;
    qwen_error *err = NULL;
    int32_t status =
        qwen_tokenizer_render_chat_json(OBJECT(qwen_tokenizer, tokenizer), text.data, text.len,
                                        (uint64_t)window, &tokens, &err);
    free(text.data);
    return qj_give_tokens(env, status, tokens, err);
}

NATIVE(jbyteArray, tokenizerInfo)(JNIEnv *env, jclass class, jlong tokenizer) {
    (void)class;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_tokenizer_info_json(OBJECT(qwen_tokenizer, tokenizer), &buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(void, tokenizerFree)(JNIEnv *env, jclass class, jlong tokenizer) {
    (void)env, (void)class;
    qwen_tokenizer_free(OBJECT(qwen_tokenizer, tokenizer));
}

NATIVE(jlong, detokNew)(JNIEnv *env, jclass class, jlong tokenizer) {
    (void)class;
    qwen_detok *detok = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_detok_new(OBJECT(qwen_tokenizer, tokenizer), &detok, &err);
    return qj_ok(env, status, err) ? NUMBER(detok) : 0;
}

NATIVE(jbyteArray, detokPush)(JNIEnv *env, jclass class, jlong detok, jintArray tokens) {
    (void)class;
    qj_ids ids;
    if (!qj_take_ids(env, tokens, &ids))
        return NULL;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_detok_push(OBJECT(qwen_detok, detok), ids.data, ids.len, &buf, &err);
    free(ids.data);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, detokFinish)(JNIEnv *env, jclass class, jlong detok) {
    (void)class;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_detok_finish(OBJECT(qwen_detok, detok), &buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(void, detokFree)(JNIEnv *env, jclass class, jlong detok) {
    (void)env, (void)class;
    qwen_detok_free(OBJECT(qwen_detok, detok));
}
