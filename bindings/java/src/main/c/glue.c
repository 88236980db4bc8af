/* glue.c: loading, arrays there and back, errors, options; see glue.h. */
#include "glue.h"
#include <stdlib.h>
#include <string.h>

jmethodID qj_on_progress, qj_on_event;
static jclass exception_class;
static jmethodID exception_of;

static jmethodID method_of(JNIEnv *env, const char *class_name, const char *name,
                           const char *signature) {
    jclass class = (*env)->FindClass(env, class_name);
    if (class == NULL)
        return NULL;
    jmethodID method = (*env)->GetMethodID(env, class, name, signature);
    (*env)->DeleteLocalRef(env, class);
    return method;
}

static bool find_classes(JNIEnv *env) {
    jclass class = (*env)->FindClass(env, "io/github/libqwen/QwenException");
    if (class == NULL)
        return false;
    exception_class = (*env)->NewGlobalRef(env, class);
    (*env)->DeleteLocalRef(env, class);
    if (exception_class == NULL)
        return false;
    exception_of = (*env)->GetStaticMethodID(env, exception_class, "of",
                                             "(I[B[B)Lio/github/libqwen/QwenException;");
    if (exception_of == NULL)
        return false;
    qj_on_progress = method_of(env, "io/github/libqwen/LoadProgress", "onProgress", "(JJ)V");
    if (qj_on_progress == NULL)
        return false;
    qj_on_event = method_of(env, "io/github/libqwen/EventSink", "onEvent", "([B)V");
    return qj_on_event != NULL;
}

/* An exception that is pending here is thrown by System.load. */
JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
    (void)reserved;
    JNIEnv *env = NULL;
    if ((*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_1_8) != JNI_OK)
        return JNI_ERR;
    if (!find_classes(env))
        return JNI_VERSION_1_8;
    qwen_error *err = NULL;
    int32_t status = qwen_check_abi(QWEN_ABI_VERSION, &err);
    qj_ok(env, status, err);
    return JNI_VERSION_1_8;
}

JNIEXPORT void JNICALL JNI_OnUnload(JavaVM *vm, void *reserved) {
    (void)reserved;
    JNIEnv *env = NULL;
    if ((*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_1_8) == JNI_OK && exception_class != NULL)
        (*env)->DeleteGlobalRef(env, exception_class);
}

void qj_throw(JNIEnv *env, int32_t status, const char *message, const char *detail) {
    jobject exception = NULL;
    jbyteArray why = qj_give_bytes(env, message, strlen(message));
    jbyteArray more = why == NULL ? NULL : qj_give_bytes(env, detail, strlen(detail));
    if (more != NULL) {
        exception = (*env)->CallStaticObjectMethod(env, exception_class, exception_of, status, why,
                                                   more);
        if (!(*env)->ExceptionCheck(env) && exception != NULL)
            (*env)->Throw(env, (jthrowable)exception);
    }
    (*env)->DeleteLocalRef(env, exception);
    (*env)->DeleteLocalRef(env, more);
    (*env)->DeleteLocalRef(env, why);
}

void qj_throw_no_memory(JNIEnv *env) {
    qj_throw(env, QWEN_E_OOM_HOST, "the host has no memory for a copy", "{}");
}

bool qj_ok(JNIEnv *env, int32_t status, qwen_error *err) {
    if (status == QWEN_OK)
        return true;
    if (err == NULL)
        qj_throw(env, status, qwen_status_name(status), "{}");
    else
        qj_throw(env, status, qwen_error_message(err), qwen_error_detail_json(err));
    qwen_error_free(err);
    return false;
}

bool qj_take_bytes(JNIEnv *env, jbyteArray array, qj_bytes *bytes) {
    bytes->data = NULL;
    bytes->len = 0;
    if (array == NULL)
        return true;
    const jsize len = (*env)->GetArrayLength(env, array);
    /* One more, so that an empty text is not NULL. */
    bytes->data = malloc((size_t)len + 1);
    if (bytes->data == NULL) {
        qj_throw_no_memory(env);
        return false;
    }
    (*env)->GetByteArrayRegion(env, array, 0, len, (jbyte *)bytes->data);
    if ((*env)->ExceptionCheck(env)) {
        free(bytes->data);
        bytes->data = NULL;
        return false;
    }
    bytes->data[len] = '\0';
    bytes->len = (uint64_t)len;
    return true;
}

bool qj_take_ids(JNIEnv *env, jintArray array, qj_ids *ids) {
    ids->data = NULL;
    ids->len = 0;
    if (array == NULL)
        return true;
    const jsize len = (*env)->GetArrayLength(env, array);
    ids->data = malloc(((size_t)len + 1) * sizeof *ids->data);
    if (ids->data == NULL) {
        qj_throw_no_memory(env);
        return false;
    }
    (*env)->GetIntArrayRegion(env, array, 0, len, (jint *)ids->data);
    if ((*env)->ExceptionCheck(env)) {
        free(ids->data);
        ids->data = NULL;
        return false;
    }
    ids->len = (uint64_t)len;
    return true;
}

jbyteArray qj_give_bytes(JNIEnv *env, const void *data, uint64_t len) {
    if (len > INT32_MAX) {
        /* No message can be that long, so this ends. */
        qj_throw_no_memory(env);
        return NULL;
    }
    jbyteArray array = (*env)->NewByteArray(env, (jsize)len);
    if (array == NULL)
        return NULL;
    (*env)->SetByteArrayRegion(env, array, 0, (jsize)len, data);
    if ((*env)->ExceptionCheck(env)) {
        (*env)->DeleteLocalRef(env, array);
        return NULL;
    }
    return array;
}

jbyteArray qj_give_buf(JNIEnv *env, int32_t status, qwen_buf *buf, qwen_error *err) {
    jbyteArray array = NULL;
    if (qj_ok(env, status, err))
        array = qj_give_bytes(env, qwen_buf_data(buf), qwen_buf_len(buf));
    qwen_buf_free(buf);
    return array;
}

jintArray qj_give_tokens(JNIEnv *env, int32_t status, qwen_tokens *tokens, qwen_error *err) {
    jintArray array = NULL;
    const uint64_t len = qwen_tokens_len(tokens);
    if (!qj_ok(env, status, err)) {
        /* It is thrown. */
    } else if (len > INT32_MAX) {
        qj_throw_no_memory(env);
    } else {
        array = (*env)->NewIntArray(env, (jsize)len);
    }
    if (array != NULL && len > 0) {
        (*env)->SetIntArrayRegion(env, array, 0, (jsize)len,
                                  (const jint *)qwen_tokens_data(tokens));
        if ((*env)->ExceptionCheck(env)) {
            (*env)->DeleteLocalRef(env, array);
            array = NULL;
        }
    }
    qwen_tokens_free(tokens);
    return array;
}

jfloatArray qj_give_floats(JNIEnv *env, int32_t status, qwen_floats *floats, qwen_error *err) {
    jfloatArray array = NULL;
    const uint64_t len = qwen_floats_len(floats);
    if (!qj_ok(env, status, err)) {
        /* It is thrown. */
    } else if (len > INT32_MAX) {
        qj_throw_no_memory(env);
    } else {
        array = (*env)->NewFloatArray(env, (jsize)len);
    }
    if (array != NULL && len > 0) {
        (*env)->SetFloatArrayRegion(env, array, 0, (jsize)len, qwen_floats_data(floats));
        if ((*env)->ExceptionCheck(env)) {
            (*env)->DeleteLocalRef(env, array);
            array = NULL;
        }
    }
    qwen_floats_free(floats);
    return array;
}

bool qj_take_options(JNIEnv *env, const char *kind, jbyteArray json, qwen_options **options) {
    *options = NULL;
    if (json == NULL)
        return true;
    qj_bytes text;
    if (!qj_take_bytes(env, json, &text))
        return false;
    qwen_error *err = NULL;
    int32_t status = qwen_options_new(kind, QWEN_CSTR, options, &err);
    if (status == QWEN_OK)
        status = qwen_options_merge_json(*options, text.data, text.len, &err);
    free(text.data);
    if (qj_ok(env, status, err))
        return true;
    qwen_options_free(*options);
    *options = NULL;
    return false;
}

NATIVE(jbyteArray, version)(JNIEnv *env, jclass class) {
    (void)class;
    return qj_give_bytes(env, qwen_version(), strlen(qwen_version()));
}

NATIVE(jint, abiVersion)(JNIEnv *env, jclass class) {
    (void)env, (void)class;
    return (jint)qwen_abi_version();
}

NATIVE(void, checkAbi)(JNIEnv *env, jclass class, jint version) {
    (void)class;
    qwen_error *err = NULL;
    int32_t status = qwen_check_abi((uint32_t)version, &err);
    qj_ok(env, status, err);
}

NATIVE(jbyteArray, statusName)(JNIEnv *env, jclass class, jint status) {
    (void)class;
    const char *name = qwen_status_name(status);
    return qj_give_bytes(env, name, strlen(name));
}

NATIVE(jbyteArray, buildInfo)(JNIEnv *env, jclass class) {
    (void)class;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_build_info_json(&buf, &err);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, describeOptions)(JNIEnv *env, jclass class, jbyteArray kind) {
    (void)class;
    qj_bytes name;
    if (!qj_take_bytes(env, kind, &name))
        return NULL;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_options_describe_json(name.data, name.len, &buf, &err);
    free(name.data);
    return qj_give_buf(env, status, buf, err);
}

NATIVE(jbyteArray, canonicalOptions)(JNIEnv *env, jclass class, jbyteArray kind, jbyteArray json) {
    (void)class;
    qj_bytes name;
    qwen_options *options = NULL;
    if (!qj_take_bytes(env, kind, &name))
        return NULL;
    bool taken = qj_take_options(env, name.data, json, &options);
    free(name.data);
    if (!taken)
        return NULL;
    qwen_buf *buf = NULL;
    qwen_error *err = NULL;
    int32_t status = qwen_options_get_json(options, &buf, &err);
    qwen_options_free(options);
    return qj_give_buf(env, status, buf, err);
}
