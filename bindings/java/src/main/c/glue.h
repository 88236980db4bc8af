/* glue.h: what the files of the JNI glue share.
 *
 * The glue lies between Native.java and qwen.h and decides nothing. Its rules:
 * - Texts and lists cross as byte[] and int[], copied; never as jstring, whose UTF-8 is another one.
 * - A function that returns false, 0 or NULL after a failure leaves a Java exception pending, and
 *   its caller returns at once.
 * - Java code is called only on a thread that came from Java, never on one of the library's. */
#ifndef QWEN_JAVA_GLUE_H
#define QWEN_JAVA_GLUE_H

#include "io_github_libqwen_Native.h"
#include <jni.h>
#include <qwen.h>
#include <stdbool.h>
#include <stddef.h>

/* A function that Native.java declares; the header that javac writes checks its signature. */
#define NATIVE(type, name) JNIEXPORT type JNICALL Java_io_github_libqwen_Native_##name

/* Copies of Java's arrays, to be freed with free(data). NULL stays NULL; an empty array does not. */
typedef struct {
    char *data;
    uint64_t len;
} qj_bytes;

typedef struct {
    uint32_t *data;
    uint64_t len;
} qj_ids;

bool qj_take_bytes(JNIEnv *env, jbyteArray array, qj_bytes *bytes);
bool qj_take_ids(JNIEnv *env, jintArray array, qj_ids *ids);

jbyteArray qj_give_bytes(JNIEnv *env, const void *data, uint64_t len);

/* Make a result of the library one of Java, free it, and throw what went wrong. */
bool qj_ok(JNIEnv *env, int32_t status, qwen_error *err);
jbyteArray qj_give_buf(JNIEnv *env, int32_t status, qwen_buf *buf, qwen_error *err);
jintArray qj_give_tokens(JNIEnv *env, int32_t status, qwen_tokens *tokens, qwen_error *err);
jfloatArray qj_give_floats(JNIEnv *env, int32_t status, qwen_floats *floats, qwen_error *err);

void qj_throw(JNIEnv *env, int32_t status, const char *message, const char *detail);
void qj_throw_no_memory(JNIEnv *env);

/* Options of a kind from their JSON; the caller frees them. Java's NULL stands for none. */
bool qj_take_options(JNIEnv *env, const char *kind, jbyteArray json, qwen_options **options);

/* Bytes that grow; `failed` once there was no memory for them. */
typedef struct {
    unsigned char *data;
    size_t len, capacity;
    bool failed;
} qj_writer;

/* Writes an event for Event.java to read; events.c has the layout. */
void qj_write_event(qj_writer *out, const qwen_event *event);

/* Takes the writer's bytes to Java and frees them. */
jbyteArray qj_give_written(JNIEnv *env, qj_writer *out);

/* The methods that C calls. Valid from JNI_OnLoad on. */
extern jmethodID qj_on_progress, qj_on_event;

/* Sends the log lines of engines with these options to a log of log.c. */
bool qj_set_log(JNIEnv *env, qwen_options *options, int32_t level, jlong log);

/* A handle of Java's as a pointer, and back. */
#define OBJECT(type, number) ((type *)(intptr_t)(number))
#define NUMBER(pointer) ((jlong)(intptr_t)(pointer))

#endif
