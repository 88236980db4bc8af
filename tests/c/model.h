/* model.h: a small model to talk to, for the tests that need one.
 *
 * The checkpoints of tests/data/tiny have random weights: their replies are random bytes, many of
 * them no UTF-8, which is just what these tests want. */
#ifndef MODEL_H
#define MODEL_H

#include "check.h"

static inline qwen_engine *open_engine(const char *folder, const char *options_json) {
    qwen_options *options = NULL;
    qwen_engine *engine = NULL;
    CHECK_OK(qwen_options_new("engine", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_merge_json(options, options_json, QWEN_CSTR, &err));
    CHECK_OK(qwen_engine_open(folder, QWEN_CSTR, options, NULL, NULL, &engine, &err));
    CHECK(engine != NULL);
    qwen_options_free(options);
    return engine;
}

/* Options for replies of exactly `max_tokens` tokens, drawn with `seed`. */
static inline qwen_options *long_reply(int64_t max_tokens, int64_t seed) {
    qwen_options *options = NULL;
    CHECK_OK(qwen_options_new("generation", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_set_i64(options, "max_tokens", QWEN_CSTR, max_tokens, &err));
    CHECK_OK(qwen_options_set_i64(options, "ignore_eos", QWEN_CSTR, 1, &err));
    CHECK_OK(qwen_options_set_i64(options, "seed", QWEN_CSTR, seed, &err));
    return options;
}

static inline qwen_session *new_session(const qwen_engine *engine) {
    qwen_session *session = NULL;
    CHECK_OK(qwen_session_new(engine, NULL, &session, &err));
    return session;
}

/* Options that keep a test engine small and on one thread. */
#define SMALL "{\"num_threads\": 1, \"kv_cache_tokens\": 8192, \"max_context_tokens\": 2048}"

#endif
