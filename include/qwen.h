/* qwen.h: Qwen-1 chat models inside your process.
 *
 * This file is the manual. It is generated: edit src/capi, then run `make header`.
 *
 * The small path: qwen_engine_open, qwen_session_new, qwen_session_chat with a callback.
 *
 * Rules that hold for every function:
 * - A function that can fail returns a status, QWEN_OK (0) or QWEN_E_*, and takes `err` last. Where
 *   `err` is not NULL, it receives NULL, or an error that the caller frees.
 * - Every other out-pointer receives NULL (or 0) before anything can fail.
 * - A NULL handle is QWEN_E_NULL, or the neutral answer of a function that returns no status.
 *   Functions named *_free do nothing with NULL.
 * - Text comes in as pointer and length in bytes (QWEN_CSTR: up to the first NUL), is UTF-8, and may
 *   hold NULs; paths are bytes without NUL. It need not live longer than the call. NULL with length
 *   0 is the empty text.
 * - Handles may be freed in any order; what depends on them keeps what it needs. A handle must not
 *   be freed while another thread is entering a call on it.
 * - "Any thread" means: any thread, several at once. No state is kept per thread.
 * - Nothing is printed, no signal handler installed, no locale set, the process never ended. A bug
 *   in the library is QWEN_E_PANIC.
 * - After a fork, calls in the child that need the engine's model get QWEN_E_FORKED.
 */


#ifndef QWEN_H
#define QWEN_H

#include <stdint.h>

/// The version of this header; qwen_version() is the library's.
#define QWEN_VERSION "0.1.0"
#define QWEN_VERSION_MAJOR 0
#define QWEN_VERSION_MINOR 1
#define QWEN_VERSION_PATCH 0

/// The ABI this header describes; `qwen_abi_version()` is the library's. Grows only when an
/// exported function is taken away or changes its meaning, and the soname grows with it.
#define QWEN_ABI_VERSION 1

/// As the length of a string argument: the string ends at its first NUL.
#define QWEN_CSTR UINT64_MAX

/// Success.
#define QWEN_OK 0

/// A required pointer was NULL. Codes 1 to 99: the caller's mistake.
#define QWEN_E_NULL 1

/// An argument has a value that can never work.
#define QWEN_E_ARG 2

/// Text is not UTF-8; the detail has the offset of the first bad byte.
#define QWEN_E_UTF8 3

/// An option is unknown, of the wrong type or out of range; the detail has its key.
#define QWEN_E_OPTION 4

/// The call does not fit the object's present state.
#define QWEN_E_STATE 5

/// Another thread is using an object that serves one thread at a time.
#define QWEN_E_BUSY 6

/// A callback called back into the object that is calling it.
#define QWEN_E_REENTRANT 7

/// The engine was shut down.
#define QWEN_E_CLOSED 8

/// The program was compiled for another ABI than the library's.
#define QWEN_E_ABI_MISMATCH 9

/// The process is a fork of the one that opened the engine.
#define QWEN_E_FORKED 10

/// A callback returned a value other than QWEN_CONTINUE, QWEN_STOP and QWEN_CANCEL.
#define QWEN_E_CALLBACK 11

/// The host has too little memory; the detail has the bytes. Codes 100 to 199: a limit was met.
#define QWEN_E_OOM_HOST 100

/// A device has too little memory.
#define QWEN_E_OOM_DEVICE 101

/// The request can never fit the context or the KV cache; the detail has the numbers.
#define QWEN_E_CONTEXT_FULL 102

/// Too many requests are waiting; try again later.
#define QWEN_E_QUEUE_FULL 103

/// Nothing happened in the time allowed; nothing was lost. Also of a request that waited for longer than
/// its queue_timeout_ms.
#define QWEN_E_TIMEOUT 104

/// The request did not end within its deadline_ms. What was generated until then was told.
#define QWEN_E_DEADLINE 105

/// The request, or the loading, was cancelled.
#define QWEN_E_CANCELLED 106

/// There is nothing more to come.
#define QWEN_E_END 107

/// A file or folder does not exist. Codes 200 to 299: the model's files.
#define QWEN_E_NOT_FOUND 200

/// The operating system refused to open, read or map a file.
#define QWEN_E_IO 201

/// A file, or a saved session, contradicts its format; the detail has the path, and the tensor and offset
/// if known.
#define QWEN_E_CORRUPT 202

/// A sound file asks for something this library does not do.
#define QWEN_E_UNSUPPORTED 203

/// Saved state belongs to another model, or was saved in another version of its format; the detail says
/// which.
#define QWEN_E_STATE_MISMATCH 204

/// The engine stopped working; open a new one. Codes 300 to 399: the engine or a device.
#define QWEN_E_ENGINE_FAILED 300

/// The device asked for does not exist here.
#define QWEN_E_NO_DEVICE 301

/// A device reported an error.
#define QWEN_E_DEVICE 302

/// The model gave no finite numbers for this request, as a damaged checkpoint does. The engine goes
/// on; the detail has the position of the token.
#define QWEN_E_NOT_FINITE 303

/// A bug in this library, caught at its edge. Codes from 900: our mistake.
#define QWEN_E_PANIC 900

/// A callback's result: go on.
#define QWEN_CONTINUE 0

/// A callback's result, and a way to cancel: end the reply here and keep it.
#define QWEN_STOP 1

/// A callback's result, and a way to cancel: end the reply here and forget it.
#define QWEN_CANCEL 2

/// Log level: the engine cannot go on.
#define QWEN_LOG_ERROR 1

/// Log level: something is not as it should be.
#define QWEN_LOG_WARN 2

/// Log level: what the engine does, in a few lines.
#define QWEN_LOG_INFO 3

/// Log level: what the engine does, in detail.
#define QWEN_LOG_DEBUG 4

/// For qwen_engine_shutdown: refuse new requests, finish those accepted.
#define QWEN_SHUTDOWN_DRAIN 1

/// For qwen_engine_shutdown: refuse new requests, cancel those accepted.
#define QWEN_SHUTDOWN_CANCEL 2

/// Kind of an event: the prompt is being computed.
#define QWEN_EVENT_STARTED 1

/// Kind of an event: new text.
#define QWEN_EVENT_DELTA 2

/// Kind of an event: the reply is complete, or with n > 1 all of them; the request's last event. It may
/// bring text, too.
#define QWEN_EVENT_FINISHED 3

/// Kind of an event: the request ended with an error; its last event.
#define QWEN_EVENT_FAILED 4

/// Kind of an event, with n > 1 only: one of the replies is complete.
#define QWEN_EVENT_CHOICE_FINISHED 5

/// Kind of an event, with tools: new text that the model says to itself, and not to the reader.
#define QWEN_EVENT_THOUGHT 6

/// Kind of an event, with tools: new text of a call's arguments as the model writes them, to show and
/// not to act upon. qwen_event_tool_name and qwen_event_tool_id say of which call.
#define QWEN_EVENT_TOOL_DELTA 7

/// Kind of an event, with tools: the model calls a tool. qwen_event_tool_name, _tool_arguments,
/// _tool_arguments_form and _tool_id tell how. A reply has one call at most.
#define QWEN_EVENT_TOOL_CALL 8

/// Reason of an end: the model, or a stop text or id, ended the reply.
#define QWEN_FINISH_STOP 1

/// Reason of an end: max_tokens is reached, or the context is full.
#define QWEN_FINISH_LENGTH 2

/// Reason of an end: the caller ended the reply and keeps it.
#define QWEN_FINISH_CANCELLED 3

/// Reason of an end: the model called a tool, and waits for its result.
#define QWEN_FINISH_TOOL_CALLS 4

/// Form of a call's arguments: JSON, as the model wrote it.
#define QWEN_ARGUMENTS_JSON 1

/// Form of a call's arguments: JSON, mended: the model left brackets, quotes or commas open, or wrote
/// Python's quotes and literals.
#define QWEN_ARGUMENTS_MENDED 2

/// Form of a call's arguments: no JSON; the text as the model wrote it.
#define QWEN_ARGUMENTS_TEXT 3

/// For qwen_embed: the state of the last token, which has seen all others.
#define QWEN_POOL_LAST 1

/// For qwen_embed: the mean over all tokens.
#define QWEN_POOL_MEAN 2

/// For qwen_embed: the states of all tokens, in order.
#define QWEN_POOL_NONE 3

/// For qwen_tokenizer_encode: special tokens' names in the text (such as `<|im_end|>`) become their
/// control ids. Never use it on text from strangers.
#define QWEN_ENCODE_PARSE_SPECIALS 1

/// For qwen_tokenizer_decode: keep special tokens, by their names. They are left out otherwise.
#define QWEN_DECODE_KEEP_SPECIALS 1

/// For qwen_tokenizer_decode: bytes that are no UTF-8 become U+FFFD. They stay as they are
/// otherwise, for a token can end in the middle of a character.
#define QWEN_DECODE_LOSSY_TEXT 2

/// Bytes (text or JSON where the function that made them says so). Owned by the caller, immutable:
/// any thread may read it. Free it with qwen_buf_free.
typedef struct qwen_buf qwen_buf;

/// The text of a sequence of ids, for callers that stream ids themselves. It keeps back a character
/// whose last byte is still to come. Any thread may use it; calls take turns. Free it with
/// qwen_detok_free.
typedef struct qwen_detok qwen_detok;

/// A loaded model. Any thread may use it, and several at once. Sessions and requests made from it
/// may outlive the handle. Free it with qwen_engine_free.
typedef struct qwen_engine qwen_engine;

/// Why a call failed. Made by the library where a call was given a place for it, owned by the
/// caller, immutable: any thread may read it. Free it with qwen_error_free.
typedef struct qwen_error qwen_error;

/// News of a request: its beginning, new text, its end. Immutable: any thread may read it. The
/// function that gives an event says who frees it.
typedef struct qwen_event qwen_event;

/// Several events at once. Owned by the caller, immutable: any thread may read it. Free it with
/// qwen_events_free.
typedef struct qwen_events qwen_events;

/// Numbers. Owned by the caller, immutable: any thread may read it. Free it with qwen_floats_free.
typedef struct qwen_floats qwen_floats;

/// Options of one kind: "engine", "generation" or "session". Any thread may use it at any time.
/// What is made from options copies them: later changes touch nothing that exists. Free it with
/// qwen_options_free.
typedef struct qwen_options qwen_options;

/// A completion queue: the events of many requests, each with its request's tag. Any thread may
/// use it, and several at once. Free it with qwen_queue_free.
typedef struct qwen_queue qwen_queue;

/// A request for one reply. Any thread may submit, cancel and free it; one at a time may read it.
/// It holds its engine open, also when qwen_engine_free was called. Free it with
/// qwen_request_free.
typedef struct qwen_request qwen_request;

/// A conversation. One thread at a time: a call during another thread's call gets QWEN_E_BUSY.
/// Free it with qwen_session_free.
typedef struct qwen_session qwen_session;

/// A checkpoint's vocabulary. Immutable: any thread may use it, and several at once. Free it with
/// qwen_tokenizer_free.
typedef struct qwen_tokenizer qwen_tokenizer;

/// Token ids. Owned by the caller, immutable: any thread may read it. Free it with
/// qwen_tokens_free.
typedef struct qwen_tokens qwen_tokens;

/// Receives one whole log line: its level, the part of the library it comes from (NUL-terminated),
/// and the message (`message_len` bytes of UTF-8, a NUL behind them). Called on any thread, also on
/// several at once; it must not call the engine that logs. Both texts live until it returns.
typedef void (*qwen_log_fn)(int32_t level,
                            const char *target,
                            const char *message,
                            uint64_t message_len,
                            void *user);

/// Releases a callback's `user`.
typedef void (*qwen_destroy_fn)(void *user);

/// How far loading is. Later versions may add fields at the end and grow struct_size.
typedef struct {
  /// Bytes of this struct that the library filled.
  uint32_t struct_size;
  /// 0.
  uint32_t reserved;
  /// Bytes of weights that are ready.
  uint64_t done_bytes;
  /// Bytes of weights in all.
  uint64_t total_bytes;
} qwen_load_progress;

/// Is told how far loading is, on the thread that opens the engine. `progress` lives until it
/// returns. Result: QWEN_CONTINUE, or QWEN_CANCEL to give up.
typedef int32_t (*qwen_progress_fn)(const qwen_load_progress *progress, void *user);

/// Is told of the events of one request, in order, on the thread that made the call. `event` lives
/// until it returns. Result: QWEN_CONTINUE, QWEN_STOP or QWEN_CANCEL; anything else cancels with
/// QWEN_E_CALLBACK. It must not throw or longjmp, and must not use the object that calls it, except
/// to cancel or free it (QWEN_E_REENTRANT otherwise).
typedef int32_t (*qwen_event_fn)(const qwen_event *event, void *user);

/// Tokens counted. Later versions may add fields at the end and grow struct_size.
typedef struct {
  /// Set to sizeof(qwen_usage) by the caller; bytes filled, afterwards.
  uint32_t struct_size;
  /// 0.
  uint32_t reserved;
  /// Tokens of the prompt.
  uint64_t prompt_tokens;
  /// Tokens of the reply.
  uint64_t completion_tokens;
  /// Tokens of the prompt that were not computed, because the prefix cache had them.
  uint64_t cached_tokens;
} qwen_usage;

/// A token and how likely the model found it. Later versions may add fields at the end and grow
/// struct_size.
typedef struct {
  /// Set to sizeof(qwen_logprob) by the caller; bytes filled, afterwards.
  uint32_t struct_size;
  /// The token's id.
  uint32_t id;
  /// Natural logarithm of its probability: the log-softmax of the model's own logits over the
  /// vocabulary, before logit_bias, penalties, temperature and everything after it. NaN of the first
  /// token of an echo, which nothing comes before.
  double logprob;
  /// The token's bytes, of a control token those of its name. Not always whole characters. They live
  /// as long as the event.
  const uint8_t *bytes;
  /// Their number.
  uint64_t bytes_len;
} qwen_logprob;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// The name of a status code, such as "QWEN_E_UTF8"; "QWEN_E_UNKNOWN" for a code this library does
/// not know. Never NULL; NUL-terminated; valid for ever. Any thread.
const char *qwen_status_name(int32_t status);

/// The status code of the error; QWEN_OK for NULL.
int32_t qwen_error_code(const qwen_error *error);

/// One sentence for people, in UTF-8, NUL-terminated; "" for NULL. Lives as long as the error.
const char *qwen_error_message(const qwen_error *error);

/// The error's data for programs, a JSON object (the key, path, tensor, offset, bytes...), in
/// UTF-8, NUL-terminated; "{}" for NULL. Lives as long as the error.
const char *qwen_error_detail_json(const qwen_error *error);

/// Frees an error. NULL is nothing.
void qwen_error_free(qwen_error *error);

/// The bytes. One NUL, not counted, stands behind the last, so that text without NULs inside is
/// also a C string. "" for NULL. Lives as long as the buffer.
const char *qwen_buf_data(const qwen_buf *buf);

/// The number of bytes; 0 for NULL.
uint64_t qwen_buf_len(const qwen_buf *buf);

/// Frees a buffer. NULL is nothing.
void qwen_buf_free(qwen_buf *buf);

/// The first id; NULL for NULL. Lives as long as the list.
const uint32_t *qwen_tokens_data(const qwen_tokens *tokens);

/// The number of ids; 0 for NULL.
uint64_t qwen_tokens_len(const qwen_tokens *tokens);

/// Frees a list. NULL is nothing.
void qwen_tokens_free(qwen_tokens *tokens);

/// The first number; NULL for NULL. Lives as long as the list.
const float *qwen_floats_data(const qwen_floats *floats);

/// How many numbers there are; 0 for NULL.
uint64_t qwen_floats_len(const qwen_floats *floats);

/// Frees a list. NULL is nothing.
void qwen_floats_free(qwen_floats *floats);

/// The ABI of the library that is loaded. Any thread.
uint32_t qwen_abi_version(void);

/// Is the loaded library good for a program compiled with this header? Call it once at start:
/// `qwen_check_abi(QWEN_ABI_VERSION, &err)`. Any thread.
///
/// Errors: QWEN_E_ABI_MISMATCH, with both numbers in the detail.
int32_t qwen_check_abi(uint32_t abi_version, qwen_error **err);

/// The version of the library that is loaded, such as "1.2.3". NUL-terminated; valid for ever. Any
/// thread.
const char *qwen_version(void);

/// How the library was built, as a JSON object: version, abi_version, target, profile, and
/// cuda: whether it can use a GPU. The caller frees `json`. Any thread.
int32_t qwen_build_info_json(qwen_buf **json, qwen_error **err);

/// Makes an empty set of options; `kind` is "engine", "generation" or "session". The caller frees
/// `options`. Any thread.
///
/// Errors: QWEN_E_ARG for another kind.
int32_t qwen_options_new(const char *kind,
                         uint64_t kind_len,
                         qwen_options **options,
                         qwen_error **err);

/// Sets a whole-number option, or a true-or-false one with 1 or 0. Any thread.
///
/// Errors: QWEN_E_OPTION for an unknown key, a wrong type or a value out of range (the detail has
/// key and reason); QWEN_E_UTF8.
int32_t qwen_options_set_i64(qwen_options *options,
                             const char *key,
                             uint64_t key_len,
                             int64_t value,
                             qwen_error **err);

/// Sets a number option. Errors and threads as for qwen_options_set_i64.
int32_t qwen_options_set_f64(qwen_options *options,
                             const char *key,
                             uint64_t key_len,
                             double value,
                             qwen_error **err);

/// Sets a text option, or a list option to a list of this one text. Errors and threads as for
/// qwen_options_set_i64.
int32_t qwen_options_set_str(qwen_options *options,
                             const char *key,
                             uint64_t key_len,
                             const char *value,
                             uint64_t value_len,
                             qwen_error **err);

/// Sets every key of a JSON object, or none if one is refused; null takes a key back to its
/// default. Generation keys have the names of OpenAI's chat API where it has them. Any thread.
///
/// Errors: QWEN_E_ARG for text that is not a JSON object; otherwise as for qwen_options_set_i64.
int32_t qwen_options_merge_json(qwen_options *options,
                                const char *json,
                                uint64_t json_len,
                                qwen_error **err);

/// The options set so far, as a JSON object. The caller frees `json`. Any thread.
int32_t qwen_options_get_json(const qwen_options *options, qwen_buf **json, qwen_error **err);

/// Describes every key of a kind, as JSON: `{"kind", "options": [{"key", "type", "minimum",
/// "maximum", "choices", "default", "about"}...]}`; "above" instead of "minimum" where that number
/// itself is not allowed. The default "checkpoint" stands for what the
/// checkpoint's generation_config.json says. The caller frees `json`. Any thread.
///
/// Errors: QWEN_E_ARG for an unknown kind.
int32_t qwen_options_describe_json(const char *kind,
                                   uint64_t kind_len,
                                   qwen_buf **json,
                                   qwen_error **err);

/// Frees options. What was made from them stays. NULL is nothing.
void qwen_options_free(qwen_options *options);

/// Sends the log lines of engines opened with these engine options to `on_line`, up to `level`
/// (QWEN_LOG_*). Without it an engine logs nowhere. `destroy` (or NULL) is called once with `user`,
/// on any thread, when neither options nor engines need it any more; not if this call fails. Any
/// thread.
///
/// Errors: QWEN_E_ARG for an unknown level or options of another kind.
int32_t qwen_options_set_log(qwen_options *options,
                             int32_t level,
                             qwen_log_fn on_line,
                             void *user,
                             qwen_destroy_fn destroy,
                             qwen_error **err);

/// Loads the checkpoint in the folder `folder` (config.json, safetensors, qwen.tiktoken).
/// `options`: engine options, or NULL. `on_progress` with `user`: may be NULL. The caller frees
/// `engine`. Any thread; returns when the model can be used. Callbacks must not throw or longjmp.
///
/// With the engine option deterministic a reply's tokens and log-probabilities depend, to the bit, on
/// nothing but its prompt, options and seed: not on what else runs, nor on when it came. On a CPU that
/// is so anyway, and costs nothing. On a GPU it costs what batching and the prefix cache gain: requests run
/// one at a time, in order of priority and arrival, each to its end and from its first token. It is no
/// promise across libraries, drivers or types of GPU or CPU, nor across other values of devices,
/// tensor_parallel, split, num_threads, prefill_chunk_tokens and max_batch_sequences; and where free memory
/// decides, over kv_cache_tokens or how layers are divided, other memory is another value.
///
/// Errors: QWEN_E_NOT_FOUND, QWEN_E_IO, QWEN_E_CORRUPT, QWEN_E_UNSUPPORTED (path, field, tensor and
/// offset in the detail), QWEN_E_OOM_HOST (bytes in the detail), QWEN_E_NO_DEVICE, QWEN_E_OPTION,
/// QWEN_E_CANCELLED and QWEN_E_CALLBACK by `on_progress`.
int32_t qwen_engine_open(const char *folder,
                         uint64_t folder_len,
                         const qwen_options *options,
                         qwen_progress_fn on_progress,
                         void *user,
                         qwen_engine **engine,
                         qwen_error **err);

/// What qwen_engine_open would need, as a JSON object: backend and device (what it was computed
/// for; with a GPU all bytes are the GPU's, with several those of the fullest), no_gpu (why not a
/// GPU), weight_bytes, kv_cache_bytes, kv_cache_tokens, workspace_bytes, available_bytes, fits. Loads
/// no weights. The caller frees `json`. Any thread. Errors as for qwen_engine_open.
int32_t qwen_engine_estimate_json(const char *folder,
                                  uint64_t folder_len,
                                  const qwen_options *options,
                                  qwen_buf **json,
                                  qwen_error **err);

/// The model, the backend (no_gpu: why not a GPU), sizes, and the options in force (rank_layers: how many
/// layers each rank has), as a JSON object. The caller frees `json`. Any thread.
int32_t qwen_engine_info_json(const qwen_engine *engine,
                              qwen_buf **json,
                              qwen_error **err);

/// Counters and gauges (requests, tokens, KV pages, steps), as a JSON object of numbers, and `histograms`
/// last: an object for each of those that qwen_engine_metrics_prometheus describes, with `bounds`, `counts`
/// (one more: the last is of what is above all bounds), `count` and `sum`. forward_us is the
/// time that steps took, device_us the part of it from each step's first work on a GPU to its end (0
/// on the CPU): between two readings, 1 - device_us / forward_us is how long the GPU waited between
/// steps. computed_tokens counts every token that went through the model, again after a preemption;
/// prefix_hit_tokens those that did not have to, thanks to the prefix cache. pages_used are held by
/// requests, pages_cached only kept for their contents, and prefix_evictions were given up for their
/// memory. The caller frees `json`. Any thread; never waits for the model.
int32_t qwen_engine_metrics_json(const qwen_engine *engine,
                                 qwen_buf **json,
                                 qwen_error **err);

/// The same numbers as text in Prometheus's exposition format (version 0.0.4), for a scrape endpoint. Names
/// begin with qwen_, counters end in _total, times are in seconds. Where `model` is not empty, every
/// sample has it as the label "model". The histograms, each reply of several being a request of its own:
///
/// - qwen_time_to_first_token_seconds: from the call that submits to the moment the first token is told,
///   the encoding of a chat and the queue among it; of a score or an embedding, from its tokens until it was
///   computed.
/// - qwen_time_between_tokens_seconds: from each token told to the next of the same request. A token is told
///   when the engine puts it where its reader takes events; that a slow reader finds several in one event,
///   or that text waits for the rest of a character or stop string, changes nothing here. The token that
///   ends a reply counts as told.
/// - qwen_queue_time_seconds: from the call that submits to the first step.
/// - qwen_request_duration_seconds, qwen_request_prompt_tokens, qwen_request_generated_tokens: of each
///   request that has ended, also of those that were cancelled or failed.
///
/// The caller frees `text`. Any thread; never waits for the model. Errors: QWEN_E_UTF8.
int32_t qwen_engine_metrics_prometheus(const qwen_engine *engine,
                                       const char *model,
                                       uint64_t model_len,
                                       qwen_buf **text,
                                       qwen_error **err);

/// The values that generation options have where they are not set, as a JSON object that
/// qwen_options_merge_json takes. They come from the checkpoint; there is no seed among them, for an
/// unset seed is random. The caller frees `json`. Any
/// thread.
int32_t qwen_engine_generation_json(const qwen_engine *engine,
                                    qwen_buf **json,
                                    qwen_error **err);

/// QWEN_OK while the engine can serve; the reason otherwise (QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_FORKED). Any thread; never waits for the model.
int32_t qwen_engine_health(const qwen_engine *engine, qwen_error **err);

/// Ends the engine's work; `how` is QWEN_SHUTDOWN_DRAIN or QWEN_SHUTDOWN_CANCEL. Waits at most
/// `timeout_ms` milliseconds, for ever if that is negative. Later calls answer QWEN_E_CLOSED; the
/// handle is still to be freed. Any thread, any number of times.
///
/// Errors: QWEN_E_TIMEOUT when it has not ended in that time (the shutdown goes on; an idle engine,
/// too, needs a moment); QWEN_E_ARG.
int32_t qwen_engine_shutdown(qwen_engine *engine,
                             int32_t how,
                             int64_t timeout_ms,
                             qwen_error **err);

/// Frees an engine handle. Requests still running are cancelled unless a session or another handle
/// shares the engine. NULL is nothing.
void qwen_engine_free(qwen_engine *engine);

/// Begins a conversation. `options`: session options (such as "system"), or NULL. The caller frees
/// `session`. Any thread.
///
/// Errors: QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED; QWEN_E_ARG for options of another
/// kind.
int32_t qwen_session_new(const qwen_engine *engine,
                         const qwen_options *options,
                         qwen_session **session,
                         qwen_error **err);

/// Says `text` and waits for the reply, which `on_event` (or NULL) is told with `user` as it is
/// made, on this thread. `options`: generation options, or NULL. The turn is remembered when the
/// reply is complete or the callback answers QWEN_STOP, and forgotten when it answers QWEN_CANCEL
/// or the call fails. qwen_session_reply has the whole reply.
///
/// Errors: QWEN_E_STATE where a message still waits for its reply; QWEN_E_CANCELLED and QWEN_E_CALLBACK by
/// `on_event`; QWEN_E_UTF8, QWEN_E_ARG, QWEN_E_OPTION, QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL,
/// QWEN_E_DEADLINE, QWEN_E_TIMEOUT, QWEN_E_BUSY, QWEN_E_REENTRANT, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_NOT_FINITE, QWEN_E_FORKED.
int32_t qwen_session_chat(qwen_session *session,
                          const char *text,
                          uint64_t text_len,
                          const qwen_options *options,
                          qwen_event_fn on_event,
                          void *user,
                          qwen_error **err);

/// Forgets the last reply and makes it anew, or makes the one that is missing behind a user message that
/// was appended; otherwise as qwen_session_chat. If that fails, the conversation is as it was.
///
/// Errors: QWEN_E_STATE where there is nothing to reply to; otherwise as for qwen_session_chat.
int32_t qwen_session_regenerate(qwen_session *session,
                                const qwen_options *options,
                                qwen_event_fn on_event,
                                void *user,
                                qwen_error **err);

/// Gives the result of the tool that the last reply calls (its finish reason was
/// QWEN_FINISH_TOOL_CALLS), and waits for the reply to it, otherwise as qwen_session_chat. `options`
/// should offer the same tools again. If that fails, the conversation is as it was: the call still
/// waits for its result.
///
/// Errors: QWEN_E_STATE where no call waits for a result; otherwise as for qwen_session_chat.
int32_t qwen_session_tool_result(qwen_session *session,
                                 const char *result,
                                 uint64_t result_len,
                                 const qwen_options *options,
                                 qwen_event_fn on_event,
                                 void *user,
                                 qwen_error **err);

/// Ends the reply that is being made, if one is, within one step of the engine; `how` is QWEN_STOP
/// (it is kept) or QWEN_CANCEL (it is forgotten). Any thread, also during a call and from its
/// callback; does not wait.
///
/// Errors: QWEN_E_ARG; QWEN_E_FORKED.
int32_t qwen_session_cancel(qwen_session *session, int32_t how, qwen_error **err);

/// The last reply, in UTF-8. The caller frees `reply`.
///
/// Errors: QWEN_E_STATE where there is none; QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_reply(const qwen_session *session, qwen_buf **reply, qwen_error **err);

/// All messages, the system message first, as JSON that qwen_session_append_json takes:
/// `[{"role", "content"}...]`, with `tool_calls` and `tool_call_id` where a tool is called and
/// answers. The caller frees `json`.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_messages_json(const qwen_session *session, qwen_buf **json, qwen_error **err);

/// Appends messages as they are, without the model: user and assistant messages in alternation, behind an
/// assistant's call a tool's result and again an assistant's, going on from the last there is. A system
/// message at their beginning replaces the session's. All are appended or none. Where the last is no
/// assistant's, qwen_session_regenerate makes the reply.
///
/// Errors: QWEN_E_ARG for JSON of another form or roles out of order; QWEN_E_BUSY,
/// QWEN_E_REENTRANT.
int32_t qwen_session_append_json(qwen_session *session,
                                 const char *messages,
                                 uint64_t messages_len,
                                 qwen_error **err);

/// Keeps the first `num_turns` turns (a turn is a user message and all up to its reply); 0 forgets all. The
/// system message stays.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_truncate(qwen_session *session,
                              uint64_t num_turns,
                              qwen_error **err);

/// Replaces the system message; NULL means the chat format's own.
///
/// Errors: QWEN_E_UTF8, QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_set_system(qwen_session *session,
                                const char *text,
                                uint64_t text_len,
                                qwen_error **err);

/// Replaces the text of one message; `index` counts as qwen_session_messages_json lists them, from 0,
/// the system message. Messages after it stay as they are: qwen_session_truncate forgets them, and
/// qwen_session_regenerate replies anew to the last one.
///
/// Errors: QWEN_E_ARG for an index of no message; QWEN_E_UTF8, QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_edit(qwen_session *session,
                          uint64_t index,
                          const char *text,
                          uint64_t text_len,
                          qwen_error **err);

/// A second conversation that begins with all messages of this one; from here on each goes its own
/// way. What both begin with is computed once, as long as the prefix cache has it. The caller frees
/// `fork`.
///
/// Errors: QWEN_E_BUSY, QWEN_E_REENTRANT; QWEN_E_FORKED, which is about processes.
int32_t qwen_session_fork(const qwen_session *session, qwen_session **fork, qwen_error **err);

/// The whole state of a session as bytes that qwen_session_load takes, to be kept wherever you like:
/// all messages, a fingerprint of the model, a checksum. Little-endian; N bytes of messages:
///
///     offset  size  meaning
///     0       8     "QWENSESS"
///     8       4     version of this format: 1
///     12      4     0
///     16      8     fingerprint: FNV-1a (64 bits) of the model's shape and vocabulary
///     24      8     N
///     32      N     messages, as qwen_session_messages_json gives them
///     32 + N  8     checksum: FNV-1a (64 bits) of all bytes before
///
/// The caller frees `saved`.
///
/// Errors: QWEN_E_STATE for more messages than JSON of 64 MiB holds; QWEN_E_BUSY, QWEN_E_REENTRANT.
int32_t qwen_session_save(const qwen_session *session,
                          qwen_buf **saved,
                          qwen_error **err);

/// Replaces all messages of `session` by those that qwen_session_save saved. If that fails, the
/// session is as it was.
///
/// Errors: QWEN_E_CORRUPT for bytes that were not saved so, or not all of them; QWEN_E_STATE_MISMATCH
/// for another version of the format, or a model of another shape or vocabulary (weights are not
/// compared: other ones of the same shape, such as the quantised model, are welcome); QWEN_E_BUSY,
/// QWEN_E_REENTRANT.
int32_t qwen_session_load(qwen_session *session,
                          const uint8_t *saved,
                          uint64_t saved_len,
                          qwen_error **err);

/// Frees a session, also from its own callback. Any thread. NULL is nothing. A call that makes a reply in
/// it goes on to its end: qwen_session_cancel before if it is not to.
void qwen_session_free(qwen_session *session);

/// The tag given when the request was submitted; 0 for NULL.
uint64_t qwen_event_tag(const qwen_event *event);

/// One of QWEN_EVENT_*; 0 for NULL. Later versions may add kinds: pass over those you do not know.
int32_t qwen_event_kind(const qwen_event *event);

/// Which of the n replies the event is about, from 0; 0 for one about all of them, and for NULL.
uint32_t qwen_event_choice(const qwen_event *event);

/// The new text: whole UTF-8 characters always, a NUL behind them; "" where there is none. `len`
/// (or NULL) receives its bytes. Lives as long as the event.
const char *qwen_event_text(const qwen_event *event, uint64_t *len);

/// The bytes the model wrote for this text. They differ from it where the model wrote no UTF-8,
/// which is U+FFFD in the text. `len` (or NULL) receives their number. Lives as long as the event.
const uint8_t *qwen_event_bytes(const qwen_event *event, uint64_t *len);

/// The ids of the tokens generated since the last event. `num_ids` (or NULL) receives their
/// number. Lives as long as the event.
const uint32_t *qwen_event_tokens(const qwen_event *event, uint64_t *num_ids);

/// Why the reply ended: one of QWEN_FINISH_*, on a QWEN_EVENT_CHOICE_FINISHED, and on a
/// QWEN_EVENT_FINISHED (of several replies the one that ended last); 0 otherwise.
int32_t qwen_event_finish_reason(const qwen_event *event);

/// Why the request failed, on a QWEN_EVENT_FAILED; NULL otherwise. Lives as long as the event: do
/// not free it.
const qwen_error *qwen_event_error(const qwen_event *event);

/// Fills `usage` with the tokens counted: of the whole request on a QWEN_EVENT_FINISHED or _FAILED, its
/// prompt once; of one reply on a QWEN_EVENT_CHOICE_FINISHED; 0 otherwise. Set `usage->struct_size` first.
///
/// Errors: QWEN_E_ARG for a struct_size that no version had.
int32_t qwen_event_usage(const qwen_event *event,
                         qwen_usage *usage,
                         qwen_error **err);

/// Frees an event. Not for events that a callback or a list lends. NULL is nothing.
void qwen_event_free(qwen_event *event);

/// The number of tokens that the event has log-probabilities of: with the option logprobs all of
/// qwen_event_tokens, in their order; 0 without, and for NULL.
uint64_t qwen_event_num_logprobs(const qwen_event *event);

/// The number of likeliest tokens that are known in place of token `index`, as the option top_logprobs
/// says; 0 beyond the last token, and for NULL.
uint64_t qwen_event_num_top_logprobs(const qwen_event *event,
                                     uint64_t index);

/// Fills `logprob`: of token `index` of the event where `rank` is 0, of the likeliest token in its
/// place where it is 1, of the next where it is 2. Set `logprob->struct_size` first. An event is
/// immutable: any thread.
///
/// Errors: QWEN_E_ARG for an index or rank that is not there, or a struct_size that no version had.
int32_t qwen_event_logprob(const qwen_event *event,
                           uint64_t index,
                           uint64_t rank,
                           qwen_logprob *logprob,
                           qwen_error **err);

/// All log-probabilities of the event, as JSON in the form of OpenAI's chat API:
/// `[{"token", "id", "logprob", "bytes", "top_logprobs": [{"token", "id", "logprob", "bytes"}...]}...]`;
/// "token" is text, with U+FFFD for what is no UTF-8; "logprob" is null where there is none. The caller frees `json`. Any thread.
int32_t qwen_event_logprobs_json(const qwen_event *event,
                                 qwen_buf **json,
                                 qwen_error **err);

/// The id of the call, which its result names (`tool_call_id`): the same in all events of a reply. ""
/// where the event tells of no call. Lives as long as the event.
const char *qwen_event_tool_id(const qwen_event *event,
                               uint64_t *len);

/// The tool that is called, by the model's word: it may be one that was not offered. "" where the
/// event tells of no call. Lives as long as the event.
const char *qwen_event_tool_name(const qwen_event *event, uint64_t *len);

/// All arguments of the call, on a QWEN_EVENT_TOOL_CALL; "" otherwise. Nothing has checked them against
/// the tool's parameters. Lives as long as the event.
const char *qwen_event_tool_arguments(const qwen_event *event,
                                      uint64_t *len);

/// One of QWEN_ARGUMENTS_*, on a QWEN_EVENT_TOOL_CALL; 0 otherwise.
int32_t qwen_event_tool_arguments_form(const qwen_event *event);

/// Makes a request for the reply to a conversation, `[{"role", "content"}...]` ending with a user
/// message, or with a tool's result behind an assistant's call: `{"role": "assistant", "content",
/// "tool_calls": [{"id", "type": "function", "function": {"name", "arguments"}}]}, {"role": "tool",
/// "content", "tool_call_id"}`. The options tools and tool_choice offer tools. `options`: generation options, or NULL. Nothing runs before qwen_request_submit. The
/// caller frees `request`. Any thread.
///
/// Errors: QWEN_E_ARG for JSON of another form; QWEN_E_UTF8; QWEN_E_OPTION.
int32_t qwen_request_new_chat(const qwen_engine *engine,
                              const char *messages,
                              uint64_t messages_len,
                              const qwen_options *options,
                              qwen_request **request,
                              qwen_error **err);

/// Makes a request for the continuation of token ids, which the model gets as they are; otherwise
/// as qwen_request_new_chat.
int32_t qwen_request_new_tokens(const qwen_engine *engine,
                                const uint32_t *ids,
                                uint64_t num_ids,
                                const qwen_options *options,
                                qwen_request **request,
                                qwen_error **err);

/// Hands a request to the engine. With `queue`, its events go there and carry `tag`; with NULL, they
/// wait for qwen_request_next or qwen_request_run. After a failure it may be submitted again. Any
/// thread; does not wait for the model.
///
/// Errors: QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL (numbers in the detail), QWEN_E_ARG,
/// QWEN_E_OPTION, QWEN_E_STATE for a second time, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED,
/// QWEN_E_FORKED.
int32_t qwen_request_submit(qwen_request *request,
                            qwen_queue *queue,
                            uint64_t tag,
                            qwen_error **err);

/// Waits for the next event, at most `timeout_ms` milliseconds, for ever if that is negative. Text
/// that nobody read in time comes as one event. The caller frees `event`. One thread at a time.
///
/// Errors: QWEN_E_TIMEOUT; QWEN_E_END after the last event; QWEN_E_BUSY, QWEN_E_REENTRANT;
/// QWEN_E_STATE for a request that is not submitted or has a queue; QWEN_E_FORKED. A failed request
/// is no error here but a QWEN_EVENT_FAILED.
int32_t qwen_request_next(qwen_request *request,
                          int64_t timeout_ms,
                          qwen_event **event,
                          qwen_error **err);

/// Tells `on_event` of every event until the last, on this thread, and returns how the request
/// ended. One thread at a time.
///
/// Errors: the request's own (QWEN_E_CANCELLED, QWEN_E_DEADLINE, QWEN_E_TIMEOUT for one that waited too
/// long, QWEN_E_NOT_FINITE, QWEN_E_ENGINE_FAILED); QWEN_E_CALLBACK; otherwise as for qwen_request_next.
int32_t qwen_request_run(qwen_request *request,
                         qwen_event_fn on_event,
                         void *user,
                         qwen_error **err);

/// Ends a request within one step of the engine; `how` is QWEN_STOP (its last event is a
/// QWEN_EVENT_FINISHED) or QWEN_CANCEL (a QWEN_EVENT_FAILED with QWEN_E_CANCELLED). Nothing happens
/// to one that has ended. One that another thread is submitting ends as soon as it is submitted.
/// Any thread, also from its own callback; does not wait.
///
/// Errors: QWEN_E_STATE for a request that is not submitted; QWEN_E_ARG; QWEN_E_FORKED.
int32_t qwen_request_cancel(qwen_request *request, int32_t how, qwen_error **err);

/// Frees a request; one that runs is cancelled, and a call that reads it at the time ends as after
/// qwen_request_cancel. Any thread, also from its own callback. NULL is nothing.
void qwen_request_free(qwen_request *request);

/// Makes an empty queue. The caller frees `queue`. Any thread.
int32_t qwen_queue_new(qwen_queue **queue, qwen_error **err);

/// Waits for the first event, at most `timeout_ms` milliseconds, for ever if that is negative, and
/// takes up to `max_events` that are there. Events of one request are in order. The caller frees
/// `events`. Any thread, several at once; each event goes to one of them.
///
/// Errors: QWEN_E_TIMEOUT; QWEN_E_END when no live request uses the queue; QWEN_E_ARG for
/// `max_events` 0.
int32_t qwen_queue_next(qwen_queue *queue,
                        uint64_t max_events,
                        int64_t timeout_ms,
                        qwen_events **events,
                        qwen_error **err);

/// The number of events; 0 for NULL.
uint64_t qwen_events_len(const qwen_events *events);

/// Event `index`, counted from 0; NULL beyond the last. Lives as long as the list: do not free it.
const qwen_event *qwen_events_at(const qwen_events *events, uint64_t index);

/// Frees a list and its events. NULL is nothing.
void qwen_events_free(qwen_events *events);

/// Frees a queue. Requests that use it go on, and their events are kept for nobody. NULL is
/// nothing.
void qwen_queue_free(qwen_queue *queue);

/// How likely the model finds `continuation` behind `context`, which the model gets as it is, without a
/// chat's form; an empty context stands for <|endoftext|>. Both are encoded as one text, and the
/// continuation is what has more tokens than the context alone. Text that looks like a control token is
/// text. Waits for the result, which goes through the batch with all other requests, a few tokens per
/// step: any thread, several at once. `options`: generation options, or NULL, of which top_logprobs,
/// priority, deadline_ms and queue_timeout_ms count.
///
/// `json`, which the caller frees: `{"logprob", "is_greedy", "tokens": [{"token", "id", "logprob",
/// "bytes", "is_greedy", "top_logprobs": [...]}...]}`: the sum over the tokens of the continuation, whether
/// each of them is the likeliest in its place, and each of them as qwen_event_logprobs_json has it.
///
/// Errors: QWEN_E_ARG for a continuation without a token; QWEN_E_UTF8, QWEN_E_OPTION,
/// QWEN_E_CONTEXT_FULL, QWEN_E_QUEUE_FULL, QWEN_E_DEADLINE, QWEN_E_TIMEOUT, QWEN_E_NOT_FINITE,
/// QWEN_E_CANCELLED by a shutdown, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED.
int32_t qwen_score(const qwen_engine *engine,
                   const char *context,
                   uint64_t context_len,
                   const char *continuation,
                   uint64_t continuation_len,
                   const qwen_options *options,
                   qwen_buf **json,
                   qwen_error **err);

/// The same of token ids; an empty context is an error then.
int32_t qwen_score_tokens(const qwen_engine *engine,
                          const uint32_t *context,
                          uint64_t num_context,
                          const uint32_t *continuation,
                          uint64_t num_continuation,
                          const qwen_options *options,
                          qwen_buf **json,
                          qwen_error **err);

/// The model's hidden states of `text` behind its last norm, hidden_size of qwen_engine_info_json numbers
/// for each; `pooling` (QWEN_POOL_*) says of which tokens. With `normalize` other than 0 each is scaled to
/// length 1. They are a chat model's states, from which it draws the next token; nothing has trained them
/// as embeddings: compare them with those of the same model and pooling only, and measure before you rely
/// on it. The model gets the text as it is, without a chat's form; what looks like a control token is text.
/// Waits for the result, which goes through the batch with all other requests: any thread, several at
/// once. `options`: generation options, or NULL, of which priority, deadline_ms, queue_timeout_ms and, with
/// QWEN_POOL_LAST, cache count. The caller frees `states`. With QWEN_POOL_NONE they take 4 * hidden_size bytes
/// a token.
///
/// Errors: QWEN_E_ARG for a text without a token or another `pooling`; QWEN_E_UTF8, QWEN_E_OPTION,
/// QWEN_E_CONTEXT_FULL, QWEN_E_OOM_HOST, QWEN_E_QUEUE_FULL, QWEN_E_DEADLINE, QWEN_E_TIMEOUT,
/// QWEN_E_NOT_FINITE, QWEN_E_CANCELLED by a shutdown, QWEN_E_CLOSED, QWEN_E_ENGINE_FAILED, QWEN_E_FORKED.
int32_t qwen_embed(const qwen_engine *engine,
                   const char *text,
                   uint64_t text_len,
                   int32_t pooling,
                   uint8_t normalize,
                   const qwen_options *options,
                   qwen_floats **states,
                   qwen_error **err);

/// The same of token ids.
int32_t qwen_embed_tokens(const qwen_engine *engine,
                          const uint32_t *ids,
                          uint64_t num_ids,
                          int32_t pooling,
                          uint8_t normalize,
                          const qwen_options *options,
                          qwen_floats **states,
                          qwen_error **err);

/// Reads the vocabulary (qwen.tiktoken or tokenizer.json) in the folder `folder`; no weights are
/// needed. The caller frees `tokenizer`. Any thread.
///
/// Errors: QWEN_E_NOT_FOUND, QWEN_E_IO, QWEN_E_CORRUPT, with path and place in the detail.
int32_t qwen_tokenizer_open(const char *folder,
                            uint64_t folder_len,
                            qwen_tokenizer **tokenizer,
                            qwen_error **err);

/// The tokenizer of an engine; it may outlive the engine. The caller frees `tokenizer`. Any thread.
int32_t qwen_tokenizer_of_engine(const qwen_engine *engine,
                                 qwen_tokenizer **tokenizer,
                                 qwen_error **err);

/// Turns text into token ids. `flags`: 0 or QWEN_ENCODE_PARSE_SPECIALS. The caller frees `tokens`.
/// Any thread.
///
/// Errors: QWEN_E_UTF8; QWEN_E_ARG for unknown flags or a text of more than 64 MiB.
int32_t qwen_tokenizer_encode(const qwen_tokenizer *tokenizer,
                              const char *text,
                              uint64_t text_len,
                              uint32_t flags,
                              qwen_tokens **tokens,
                              qwen_error **err);

/// Turns token ids into bytes; ids outside the vocabulary give none. `flags`: QWEN_DECODE_* added
/// up. The caller frees `bytes`. Any thread.
///
/// Errors: QWEN_E_ARG for unknown flags.
int32_t qwen_tokenizer_decode(const qwen_tokenizer *tokenizer,
                              const uint32_t *ids,
                              uint64_t num_ids,
                              uint32_t flags,
                              qwen_buf **bytes,
                              qwen_error **err);

/// The bytes of one token (a special token's name). The caller frees `bytes`. Any thread.
///
/// Errors: QWEN_E_ARG for an id outside the vocabulary.
int32_t qwen_tokenizer_token_bytes(const qwen_tokenizer *tokenizer,
                                   uint32_t id,
                                   qwen_buf **bytes,
                                   qwen_error **err);

/// Turns a conversation, `[{"role": "system" | "user" | "assistant" | "tool", "content": "..."}...]`,
/// into the prompt that qwen_request_new_chat would give the model, were no tools offered. No content can become a control
/// token. Turns older than `max_window_size` tokens are left out; 0 keeps all. The caller frees
/// `tokens`. Any thread.
///
/// Errors: QWEN_E_ARG for JSON of another form; QWEN_E_UTF8.
int32_t qwen_tokenizer_render_chat_json(const qwen_tokenizer *tokenizer,
                                        const char *messages,
                                        uint64_t messages_len,
                                        uint64_t max_window_size,
                                        qwen_tokens **tokens,
                                        qwen_error **err);

/// The tokenizer as a JSON object: num_tokens, and the ids end_of_text, im_start, im_end. The
/// caller frees `json`. Any thread.
int32_t qwen_tokenizer_info_json(const qwen_tokenizer *tokenizer,
                                 qwen_buf **json,
                                 qwen_error **err);

/// Frees a tokenizer. NULL is nothing.
void qwen_tokenizer_free(qwen_tokenizer *tokenizer);

/// Begins a text. The caller frees `detok`. Any thread.
int32_t qwen_detok_new(const qwen_tokenizer *tokenizer, qwen_detok **detok, qwen_error **err);

/// Takes the next ids and gives the text that is now complete: whole UTF-8 characters, perhaps
/// none; bytes that are no UTF-8 as U+FFFD. Special tokens give no text. The caller frees `text`.
int32_t qwen_detok_push(qwen_detok *detok,
                        const uint32_t *ids,
                        uint64_t num_ids,
                        qwen_buf **text,
                        qwen_error **err);

/// Ends the text and gives what was kept back: U+FFFD for a character that never became complete.
/// The next push begins another text. The caller frees `text`.
int32_t qwen_detok_finish(qwen_detok *detok, qwen_buf **text, qwen_error **err);

/// Frees a detokeniser. NULL is nothing.
void qwen_detok_free(qwen_detok *detok);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* QWEN_H */
