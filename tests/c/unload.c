/* unload.c: the library loaded by dlopen and unloaded in the middle of a generation, again and
 * again; not linked. Usage: unload LIBRARY MODEL */
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>

typedef int32_t (*options_fn)(const char *, uint64_t, qwen_options **, qwen_error **);
typedef int32_t (*merge_fn)(qwen_options *, const char *, uint64_t, qwen_error **);
typedef int32_t (*open_fn)(const char *, uint64_t, const qwen_options *, qwen_progress_fn, void *,
                           qwen_engine **, qwen_error **);
typedef int32_t (*new_fn)(const qwen_engine *, const uint32_t *, uint64_t, const qwen_options *,
                          qwen_request **, qwen_error **);
typedef int32_t (*submit_fn)(qwen_request *, qwen_queue *, uint64_t, qwen_error **);

/* ISO C has no cast from an object's pointer to a function's; POSIX promises this copy. */
static void find(void *library, const char *name, void *place) {
    void *symbol = dlsym(library, name);
    CHECK(symbol != NULL);
    memcpy(place, &symbol, sizeof symbol);
}

static qwen_options *options_of(void *library, const char *kind, const char *json) {
    options_fn make = NULL;
    merge_fn merge = NULL;
    qwen_options *options = NULL;
    find(library, "qwen_options_new", &make);
    find(library, "qwen_options_merge_json", &merge);
    CHECK(make(kind, QWEN_CSTR, &options, NULL) == QWEN_OK);
    CHECK(merge(options, json, QWEN_CSTR, NULL) == QWEN_OK);
    return options;
}

/* On its own thread, whose thread-locals end after the library is closed. */
static void *load_use_unload(void *user) {
    char **argv = user;
    const uint32_t ids[] = {1, 2, 3};
    open_fn open = NULL;
    new_fn make = NULL;
    submit_fn submit = NULL;
    qwen_engine *engine = NULL;
    qwen_request *request = NULL;
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    find(library, "qwen_engine_open", &open);
    find(library, "qwen_request_new_tokens", &make);
    find(library, "qwen_request_submit", &submit);
    const qwen_options *large = options_of(library, "engine", "{\"max_context_tokens\": 4096}");
    const qwen_options *endless =
        options_of(library, "generation", "{\"max_tokens\": 4000, \"ignore_eos\": true}");
    CHECK(open(argv[2], QWEN_CSTR, large, NULL, NULL, &engine, NULL) == QWEN_OK);
    CHECK(make(engine, ids, 3, endless, &request, NULL) == QWEN_OK);
    CHECK(submit(request, NULL, 0, NULL) == QWEN_OK);
    CHECK(dlclose(library) == 0); /* the engine's thread is still running */
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    for (int round = 0; round < 5; ++round) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, load_use_unload, argv) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    return 0;
}
