// Package qwen runs Qwen-1 chat models inside the process, over libqwen's C ABI.
//
// The small path: [Open] an engine, then range over [Engine.Stream] or call [Engine.Complete];
// [Engine.NewSession] makes a conversation that remembers its turns.
//
// # Threads
//
// An [Engine], a [Tokenizer] and a [Detokenizer] may be used by any goroutine, by several at once.
// A [Session] serves one call at a time: a second gets [ErrBusy]. The readers of an engine's requests
// take turns to wait for all of them, so a thousand streams need no thousand OS threads. A session's
// call is another matter: it holds a thread for as long as its reply is made.
//
// # Ends
//
// Close every handle; every Close may be called in any order, at any time, by any goroutine and
// again. Closing an engine ends its requests and closes its sessions. What was never closed is
// closed after the garbage collector has found it: a net, not a plan.
//
// A context that ends, and a loop that is left by break, return or panic, cancel the generation
// within one step of the engine. No code of yours runs inside a C call, but for log handlers.
//
// # Errors
//
// Errors are of type [*Error] with a [Code]; the codes are the sentinels of [errors.Is]:
// errors.Is(err, qwen.ErrQueueFull). One that a context caused also is context.Canceled or
// context.DeadlineExceeded, and a missing file also is fs.ErrNotExist.
package qwen

//go:generate go run ./internal/generate
