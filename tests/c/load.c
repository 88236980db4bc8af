/* load.c: checkpoints that cannot be loaded say why: a code, a path, and a place where there is
 * one. Usage: load TINY HOSTILE: a checkpoint, and a folder of broken ones */
#include "model.h"

#include <dirent.h>

static void join(char *out, size_t size, const char *folder, const char *name) {
    CHECK(snprintf(out, size, "%s/%s", folder, name) < (int)size);
}

static const struct {
    const char *folder;
    int32_t code;
    const char *detail;
} CASES[] = {
    {"no-such-folder", QWEN_E_NOT_FOUND, "no-such-folder"},
    {"weights-missing", QWEN_E_NOT_FOUND, "model.safetensors"},
    {"index-shard-missing", QWEN_E_NOT_FOUND, "model-0000"},
    {"vocabulary-missing", QWEN_E_NOT_FOUND, "qwen.tiktoken"},
    {"file-empty", QWEN_E_CORRUPT, "model.safetensors"},
    {"file-cut-in-data", QWEN_E_CORRUPT, "model.safetensors"},
    {"config-truncated", QWEN_E_CORRUPT, "\"offset_bytes\":99"},
    {"header-bad-json", QWEN_E_CORRUPT, "\"offset_bytes\":"},
    {"shape-transposed", QWEN_E_CORRUPT, "\"tensor\":\"transformer."},
    {"config-wrong-architecture", QWEN_E_UNSUPPORTED, "\"field\":\"architectures\""},
};

static void reasons_are_distinct(const char *hostile) {
    for (unsigned at = 0; at < sizeof CASES / sizeof *CASES; ++at) {
        char folder[512];
        qwen_engine *engine = NULL;
        qwen_error *error = NULL;
        join(folder, sizeof folder, hostile, CASES[at].folder);
        const int32_t status =
            qwen_engine_open(folder, QWEN_CSTR, NULL, NULL, NULL, &engine, &error);
        check_error(CASES[at].folder, (int)at, CASES[at].code, status, error);
        CHECK(engine == NULL);
        CHECK_DETAIL(error, CASES[at].detail);
        CHECK_DETAIL(error, "\"path\":");
        qwen_error_free(error);
    }
}

/* Every folder there is: those called "sound..." load, all others fail as a file does. */
static void nothing_crashes(const char *hostile) {
    DIR *folders = opendir(hostile);
    int opened = 0, refused = 0;
    CHECK(folders != NULL);
    for (struct dirent *entry; (entry = readdir(folders)) != NULL;) {
        char folder[512];
        qwen_engine *engine = NULL;
        qwen_error *error = NULL;
        if (entry->d_name[0] == '.')
            continue;
        join(folder, sizeof folder, hostile, entry->d_name);
        const int32_t status =
            qwen_engine_open(folder, QWEN_CSTR, NULL, NULL, NULL, &engine, &error);
        if (strncmp(entry->d_name, "sound", 5) == 0) {
            check_error(folder, 0, QWEN_OK, status, error);
            opened += 1;
        } else if (status < 200 || status > 299 || engine != NULL) {
            check_error(folder, 0, QWEN_E_CORRUPT, status, error);
        } else {
            refused += 1;
        }
        qwen_error_free(error), qwen_engine_free(engine);
    }
    closedir(folders);
    CHECK(opened >= 1 && refused >= 40);
}

static int32_t answer(const qwen_load_progress *progress, void *user) {
    CHECK(progress->struct_size == sizeof *progress);
    CHECK(progress->done_bytes <= progress->total_bytes);
    return *(int32_t *)user;
}

static void other_reasons(const char *tiny) {
    const int32_t answers[][2] = {{QWEN_CONTINUE, QWEN_OK},
                                  {QWEN_STOP, QWEN_E_CANCELLED},
                                  {QWEN_CANCEL, QWEN_E_CANCELLED},
                                  {9, QWEN_E_CALLBACK}};
    qwen_options *options = NULL;
    qwen_engine *engine = NULL;
    qwen_buf *json = NULL;
    qwen_error *error = NULL;
    for (int at = 0; at < 4; ++at) {
        int32_t say = answers[at][0];
        CHECK_FAILS(answers[at][1],
                    qwen_engine_open(tiny, QWEN_CSTR, NULL, answer, &say, &engine, &err));
        CHECK((engine != NULL) == (answers[at][1] == QWEN_OK));
        qwen_engine_free(engine);
    }
    CHECK_OK(qwen_engine_estimate_json(tiny, QWEN_CSTR, NULL, &json, &err));
    CHECK(strstr(qwen_buf_data(json), "\"fits\":true") != NULL);
    qwen_buf_free(json);
    /* More memory than there is: found before anything is taken. */
    CHECK_OK(qwen_options_new("engine", QWEN_CSTR, &options, &err));
    CHECK_OK(qwen_options_set_i64(options, "kv_cache_tokens", QWEN_CSTR, UINT32_MAX, &err));
    CHECK(qwen_engine_open(tiny, QWEN_CSTR, options, NULL, NULL, &engine, &error) ==
          QWEN_E_OOM_HOST);
    CHECK_DETAIL(error, "\"needed_bytes\":");
    qwen_error_free(error), qwen_options_free(options);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    reasons_are_distinct(argv[2]);
    nothing_crashes(argv[2]);
    other_reasons(argv[1]);
    return 0;
}
