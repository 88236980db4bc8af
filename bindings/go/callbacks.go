// What C calls in Go. Each takes a cgo.Handle as a number, and lets no panic pass into C.

package qwen

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/cgo"
	"sync/atomic"
	"unsafe"
)

//export goQwenEvent
func goQwenEvent(view *C.qwen_go_event, user C.uintptr_t) {
	event, err := eventOf(view)
	if err == nil {
		cgo.Handle(user).Value().(*mailbox).put(event)
	}
}

// loading is a load's progress callback, and how it ended if it gave up.
type loading struct {
	progress func(done, total uint64) error
	err      error
	panicked any
	exited   bool
}

//export goQwenProgress
func goQwenProgress(done, total C.uint64_t, user C.uintptr_t) C.int32_t {
	load := cgo.Handle(user).Value().(*loading)
	if load.tell(uint64(done), uint64(total)) {
		return C.QWEN_CONTINUE
	}
	return C.QWEN_CANCEL
}

// tell runs the caller's function on a goroutine of its own: a Goexit (as of testing.T.Fatal) would
// otherwise leave C's frames behind.
func (load *loading) tell(done, total uint64) bool {
	told := make(chan struct{})
	go func() {
		defer close(told)
		load.exited = true
		defer func() {
			if load.panicked = recover(); load.panicked != nil {
				load.exited = false
			}
		}()
		load.err = load.progress(done, total)
		load.exited = false
	}()
	<-told
	return load.err == nil && load.panicked == nil && !load.exited
}

// finish does in Open what the function did in the callback; err is the library's answer.
func (load *loading) finish(err error) error {
	switch {
	case load.panicked != nil:
		panic(load.panicked)
	case load.exited:
		runtime.Goexit()
	case load.err != nil && errors.Is(err, ErrCancelled):
		return &Error{Code: ErrCancelled, Message: "cancelled: " + load.err.Error(), cause: []error{load.err}}
	}
	return err
}

// logSink is where an engine's log lines go.
type logSink struct {
	logger *slog.Logger
	broken atomic.Pointer[string]
}

// slogLevels are the levels of slog by those of the library.
var slogLevels = map[int32]slog.Level{
	logError: slog.LevelError, logWarn: slog.LevelWarn, logInfo: slog.LevelInfo, logDebug: slog.LevelDebug,
}

// level is the last of the library's levels that the logger is enabled for; 0 if it is for none.
func (sink *logSink) level() int32 {
	for level := logDebug; level >= logError; level-- {
		if sink.logger.Enabled(context.Background(), slogLevels[level]) {
			return level
		}
	}
	return 0
}

// install has the options send their lines here.
func (sink *logSink) install(o *options) error {
	level := sink.level()
	if level == 0 {
		return nil
	}
	handle := cgo.NewHandle(sink)
	err := call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_go_set_log(o.native, C.int32_t(level), C.uintptr_t(handle), err)
	})
	if err != nil {
		handle.Delete()
	}
	return err
}

func (sink *logSink) write(level int32, target, message string) {
	defer func() {
		if why := recover(); why != nil {
			text := fmt.Sprint(why)
			sink.broken.CompareAndSwap(nil, &text)
		}
	}()
	if sink.broken.Load() == nil {
		sink.logger.Log(context.Background(), slogLevels[level], message, slog.String("target", target))
	}
}

// failure is the handler's panic as an error, if it had one.
func (sink *logSink) failure() error {
	if sink == nil {
		return nil
	}
	if why := sink.broken.Load(); why != nil {
		return fmt.Errorf("qwen: the log handler panicked: %s", *why)
	}
	return nil
}

//export goQwenLog
func goQwenLog(level C.int32_t, target, message *C.char, length C.uint64_t, user C.uintptr_t) {
	text := string(unsafe.Slice((*byte)(unsafe.Pointer(message)), int(length)))
	cgo.Handle(user).Value().(*logSink).write(int32(level), C.GoString(target), text)
}

//export goQwenLogEnd
func goQwenLogEnd(user C.uintptr_t) { cgo.Handle(user).Delete() }
