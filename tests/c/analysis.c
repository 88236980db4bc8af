/* analysis.c: how likely the model found tokens, and its states of them. Usage: analysis MODEL */
#include "model.h"

#include <math.h>

#define HELLO "[{\"role\": \"user\", \"content\": \"hello\"}]"

static qwen_logprob logprob_of(const qwen_event *event, uint64_t index, uint64_t rank) {
    qwen_logprob found = {sizeof found, 0, 0, NULL, 0};
    CHECK_OK(qwen_event_logprob(event, index, rank, &found, &err));
    CHECK(found.struct_size == sizeof found);
    return found;
}

/* Each token of the event, greedily drawn, is the likeliest; its bytes are the tokenizer's. */
static void check_event(const qwen_event *event, const qwen_tokenizer *tokenizer) {
    uint64_t num_ids = 0;
    const uint32_t *ids = qwen_event_tokens(event, &num_ids);
    qwen_logprob wrong = {8, 0, 0, NULL, 0}, found = {sizeof found, 0, 0, NULL, 0};
    qwen_buf *json = NULL;
    CHECK(qwen_event_num_logprobs(event) == num_ids);
    CHECK_FAILS(QWEN_E_ARG, qwen_event_logprob(event, num_ids, 0, &found, &err));
    CHECK(qwen_event_num_top_logprobs(event, num_ids) == 0);
    CHECK_OK(qwen_event_logprobs_json(event, &json, &err));
    CHECK(strncmp(qwen_buf_data(json), num_ids ? "[{" : "[]", 2) == 0);
    qwen_buf_free(json);
    for (uint64_t at = 0; at < num_ids; ++at) {
        const qwen_logprob token = logprob_of(event, at, 0);
        double sum = 0;
        qwen_buf *bytes = NULL;
        CHECK(qwen_event_num_top_logprobs(event, at) == 3 && token.id == ids[at]);
        CHECK(logprob_of(event, at, 1).id == ids[at]);
        for (uint64_t rank = 1; rank <= 3; ++rank) {
            CHECK(logprob_of(event, at, rank).logprob <= token.logprob);
            sum += exp(logprob_of(event, at, rank).logprob);
        }
        CHECK(sum > 0 && sum <= 1);
        CHECK_FAILS(QWEN_E_ARG, qwen_event_logprob(event, at, 4, &found, &err));
        CHECK_FAILS(QWEN_E_ARG, qwen_event_logprob(event, at, 0, &wrong, &err));
        CHECK_FAILS(QWEN_E_NULL, qwen_event_logprob(event, at, 0, NULL, &err));
        CHECK_OK(qwen_tokenizer_token_bytes(tokenizer, token.id, &bytes, &err));
        CHECK(qwen_buf_len(bytes) == token.bytes_len);
        CHECK(memcmp(qwen_buf_data(bytes), token.bytes, token.bytes_len) == 0);
        qwen_buf_free(bytes);
    }
}

static void logprobs_come_with_tokens(const qwen_engine *engine) {
    qwen_options *options = long_reply(20, 3);
    qwen_tokenizer *tokenizer = NULL;
    qwen_request *request = NULL;
    qwen_event *event = NULL;
    uint64_t told = 0;
    int32_t kind = 0;
    CHECK_OK(qwen_tokenizer_of_engine(engine, &tokenizer, &err));
    CHECK_OK(qwen_options_merge_json(options,
                                     "{\"temperature\": 0, \"repetition_penalty\": 1, "
                                     "\"logprobs\": true, \"top_logprobs\": 3}",
                                     QWEN_CSTR, &err));
    CHECK_OK(qwen_request_new_chat(engine, HELLO, QWEN_CSTR, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    while (kind != QWEN_EVENT_FINISHED) {
        CHECK_OK(qwen_request_next(request, -1, &event, &err));
        kind = qwen_event_kind(event);
        check_event(event, tokenizer);
        told += qwen_event_num_logprobs(event);
        qwen_event_free(event);
    }
    CHECK(told == 20);
    qwen_request_free(request), qwen_options_free(options), qwen_tokenizer_free(tokenizer);
}

/* A bias decides what is drawn; one of an id that is not there is refused when it is submitted. */
static void biases_steer(const qwen_engine *engine) {
    qwen_options *options = long_reply(3, 3);
    qwen_request *request = NULL;
    qwen_error *error = NULL;
    qwen_event *event = NULL;
    int32_t kind = 0;
    CHECK_FAILS(QWEN_E_OPTION,
                qwen_options_merge_json(options, "{\"logit_bias\": {\"5\": 101}}", QWEN_CSTR, &err));
    CHECK_OK(qwen_options_merge_json(options, "{\"logit_bias\": {\"5\": 100}}", QWEN_CSTR, &err));
    CHECK_OK(qwen_request_new_chat(engine, HELLO, QWEN_CSTR, options, &request, &err));
    CHECK_OK(qwen_request_submit(request, NULL, 0, &err));
    while (kind != QWEN_EVENT_FINISHED) {
        uint64_t num_ids = 0;
        CHECK_OK(qwen_request_next(request, -1, &event, &err));
        kind = qwen_event_kind(event);
        const uint32_t *ids = qwen_event_tokens(event, &num_ids);
        for (uint64_t at = 0; at < num_ids; ++at)
            CHECK(ids[at] == 5);
        CHECK(qwen_event_num_logprobs(event) == 0);
        qwen_event_free(event);
    }
    qwen_request_free(request);
    CHECK_OK(
        qwen_options_merge_json(options, "{\"logit_bias\": {\"4000000\": 1}}", QWEN_CSTR, &err));
    CHECK_OK(qwen_request_new_chat(engine, HELLO, QWEN_CSTR, options, &request, &err));
    CHECK(qwen_request_submit(request, NULL, 0, &error) == QWEN_E_OPTION);
    CHECK_DETAIL(error, "logit_bias");
    qwen_error_free(error), qwen_request_free(request), qwen_options_free(options);
}

/* The number behind the first `key` in JSON. */
static double number(const char *json, const char *key) {
    const char *at = strstr(json, key);
    CHECK(at != NULL);
    return strtod(at + strlen(key), NULL);
}

/* Two tokens are less likely than each of them in its place. The exact sums are compared in tests/score.rs. */
static void scores_are_sums(const qwen_engine *engine) {
    const uint32_t ids[] = {10, 20, 30, 40, 50};
    qwen_options *options = long_reply(1, 1);
    qwen_error *error = NULL;
    qwen_buf *json = NULL;
    double both, first, second;
    CHECK_OK(qwen_score_tokens(engine, ids, 3, ids + 3, 2, options, &json, &err));
    CHECK(strstr(qwen_buf_data(json), "\"is_greedy\":") != NULL);
    both = number(qwen_buf_data(json), "\"logprob\":");
    qwen_buf_free(json);
    CHECK_OK(qwen_score_tokens(engine, ids, 3, ids + 3, 1, NULL, &json, &err));
    first = number(qwen_buf_data(json), "\"logprob\":");
    qwen_buf_free(json);
    CHECK_OK(qwen_score_tokens(engine, ids, 4, ids + 4, 1, NULL, &json, &err));
    second = number(qwen_buf_data(json), "\"logprob\":");
    qwen_buf_free(json);
    CHECK(first < 0 && second < 0 && both < first && both < second);
    CHECK_OK(qwen_score(engine, "", 0, "hello", 5, NULL, &json, &err));
    qwen_buf_free(json);
    CHECK_FAILS(QWEN_E_ARG, qwen_score(engine, "hello", 5, "", 0, NULL, &json, &err));
    CHECK(json == NULL);
    CHECK(qwen_score(engine, "aÿ", 2, "b", 1, NULL, &json, &error) == QWEN_E_UTF8);
    CHECK_DETAIL(error, "\"offset\":1");
    qwen_error_free(error), qwen_options_free(options);
}

/* The poolings agree with each other. The exact states are compared in tests/embed.rs. */
static void states_are_pooled(const qwen_engine *engine) {
    const uint32_t ids[] = {10, 20, 30};
    qwen_floats *last = NULL, *mean = NULL, *all = NULL;
    qwen_error *error = NULL;
    double square = 0;
    CHECK_OK(qwen_embed_tokens(engine, ids, 3, QWEN_POOL_LAST, 0, NULL, &last, &err));
    CHECK_OK(qwen_embed_tokens(engine, ids, 3, QWEN_POOL_MEAN, 0, NULL, &mean, &err));
    CHECK_OK(qwen_embed_tokens(engine, ids, 3, QWEN_POOL_NONE, 0, NULL, &all, &err));
    const uint64_t size = qwen_floats_len(last);
    const float *rows = qwen_floats_data(all);
    CHECK(size > 0 && qwen_floats_len(mean) == size && qwen_floats_len(all) == 3 * size);
    CHECK(memcmp(qwen_floats_data(last), rows + 2 * size, size * sizeof *rows) == 0);
    for (uint64_t at = 0; at < size; ++at) {
        const double sum = (double)rows[at] + rows[size + at] + rows[2 * size + at];
        CHECK(qwen_floats_data(mean)[at] == (float)(sum / 3));
    }
    qwen_floats_free(last), qwen_floats_free(mean), qwen_floats_free(all);
    CHECK_OK(qwen_embed(engine, "hello", 5, QWEN_POOL_MEAN, 1, NULL, &mean, &err));
    for (uint64_t at = 0; at < size; ++at)
        square += (double)qwen_floats_data(mean)[at] * qwen_floats_data(mean)[at];
    CHECK(fabs(square - 1) < 1e-6);
    qwen_floats_free(mean);
    CHECK_FAILS(QWEN_E_ARG, qwen_embed(engine, "", 0, QWEN_POOL_LAST, 0, NULL, &last, &err));
    CHECK(last == NULL);
    CHECK(qwen_embed(engine, "a", 1, 4, 0, NULL, &last, &error) == QWEN_E_ARG);
    CHECK_DETAIL(error, "pooling");
    qwen_error_free(error);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    qwen_engine *engine = open_engine(argv[1], SMALL);
    logprobs_come_with_tokens(engine);
    biases_steer(engine);
    scores_are_sums(engine);
    states_are_pooled(engine);
    qwen_engine_free(engine);
    return 0;
}
