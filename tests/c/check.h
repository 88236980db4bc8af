/* check.h: what the C tests share. CHECK stops the program with a line on standard error; a program
 * that succeeds prints nothing at all, and tests/c/run.sh fails it if it does. */
#ifndef CHECK_H
#define CHECK_H

#include <qwen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* `call` fails with `code`, and says so in an error object; it may use `err`. */
#define CHECK_FAILS(code, call)                                                                    \
    do {                                                                                           \
        qwen_error *err = NULL;                                                                    \
        const int32_t status_ = (call);                                                            \
        check_error(__FILE__, __LINE__, (code), status_, err);                                     \
        qwen_error_free(err);                                                                      \
    } while (0)

/* `call` succeeds; it may use `err`. */
#define CHECK_OK(call) CHECK_FAILS(QWEN_OK, call)

static inline void check_error(const char *file, int line, int32_t wanted, int32_t got,
                               const qwen_error *error) {
    if (got == wanted && qwen_error_code(error) == got)
        return;
    fprintf(stderr, "%s:%d: wanted %s, got %s (%s): %s %s\n", file, line, qwen_status_name(wanted),
            qwen_status_name(got), qwen_status_name(qwen_error_code(error)),
            qwen_error_message(error), qwen_error_detail_json(error));
    exit(1);
}

/* The detail of `error` contains `part`. */
#define CHECK_DETAIL(error, part) CHECK(strstr(qwen_error_detail_json(error), (part)) != NULL)

#endif
