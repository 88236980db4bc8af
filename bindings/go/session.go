// Sessions: conversations that remember their turns.

package qwen

// #include "shim.h"
import "C"

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"runtime/cgo"
	"sync"
	"time"
	"unsafe"
)

// A Session is a conversation. It serves one call at a time: a second gets [ErrBusy]. Stop, Cancel
// and Close may be called by any goroutine, also during a call.
type Session struct {
	inner *session
	// Whoever holds a session holds its engine, which is closed when it is garbage.
	engine *Engine
}

type session struct {
	core   *core
	handle *handle
	// Held by the call that makes a reply: only that call may cancel what it has begun.
	replying sync.Mutex
}

// NewSession begins a conversation. The caller closes it; the engine's Close does so as well.
func (e *Engine) NewSession(opts ...SessionOption) (*Session, error) {
	defer runtime.KeepAlive(e)
	var config sessionConfig
	for _, opt := range opts {
		opt(&config)
	}
	options, err := newOptions("session", config.settings)
	if err != nil {
		return nil, err
	}
	defer options.close()
	var native *C.qwen_session
	err = e.core.handle.with(func(engine unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_session_new((*C.qwen_engine)(engine), options.native, &native, err)
		})
	})
	if err != nil {
		return nil, err
	}
	return ownSession(e, native)
}

// ownSession makes a session of the library one of an engine's.
func ownSession(engine *Engine, native *C.qwen_session) (*Session, error) {
	core := engine.core
	inner := &session{core: core, handle: newHandle("session", unsafe.Pointer(native), freeSession)}
	if !core.adopt(inner.handle) {
		inner.handle.close()
		return nil, closedError("engine")
	}
	made := &Session{inner, engine}
	runtime.AddCleanup(made, (*session).close, inner)
	return made, nil
}

func freeSession(object unsafe.Pointer) { C.qwen_session_free((*C.qwen_session)(object)) }

// Stream says something and yields the reply's events as they come; the last is an EventFinished, or
// an error with an empty event. The turn is remembered when the reply is complete or Stop ended it;
// it is forgotten when the loop is left, the context ends, or the reply fails. Of several
// generations' options, later ones go over earlier ones.
func (s *Session) Stream(ctx context.Context, text string, generations ...Generation) iter.Seq2[Event, error] {
	return s.reply(ctx, generations, func(native *C.qwen_session, options *C.qwen_options, user C.uintptr_t) error {
		data, length := textOf(text)
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_go_session_chat(native, data, length, options, user, err)
		})
	})
}

// Send is Stream for the whole reply.
func (s *Session) Send(ctx context.Context, text string, generations ...Generation) (*Result, error) {
	return collect(s.Stream(ctx, text, generations...))
}

// ToolResultStream gives the result of the tool that the last reply calls, and yields the reply to it as
// Stream does. The options should offer the same tools again. [ErrState] where no call waits.
func (s *Session) ToolResultStream(ctx context.Context, result string, generations ...Generation) iter.Seq2[Event, error] {
	return s.reply(ctx, generations, func(native *C.qwen_session, options *C.qwen_options, user C.uintptr_t) error {
		data, length := textOf(result)
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_go_session_tool_result(native, data, length, options, user, err)
		})
	})
}

// ToolResult is ToolResultStream for the whole reply.
func (s *Session) ToolResult(ctx context.Context, result string, generations ...Generation) (*Result, error) {
	return collect(s.ToolResultStream(ctx, result, generations...))
}

// RegenerateStream forgets the last reply and makes it anew, or makes the one that is missing behind a
// user message that was appended; otherwise as Stream. If that fails, the conversation is as it was.
func (s *Session) RegenerateStream(ctx context.Context, generations ...Generation) iter.Seq2[Event, error] {
	return s.reply(ctx, generations, func(native *C.qwen_session, options *C.qwen_options, user C.uintptr_t) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_go_session_regenerate(native, options, user, err)
		})
	})
}

// Regenerate is RegenerateStream for the whole reply.
func (s *Session) Regenerate(ctx context.Context, generations ...Generation) (*Result, error) {
	return collect(s.RegenerateStream(ctx, generations...))
}

// reply yields the events of a call that makes a reply. The call runs on a goroutine of its own, for
// what a loop's body may do (panic, end its goroutine, use the session) must not happen inside C.
func (s *Session) reply(
	ctx context.Context,
	generations []Generation,
	generate func(native *C.qwen_session, options *C.qwen_options, user C.uintptr_t) error,
) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		defer runtime.KeepAlive(s)
		if ctx.Err() != nil {
			yield(Event{}, ended(ctx))
			return
		}
		if !s.inner.replying.TryLock() {
			yield(Event{}, &Error{Code: ErrBusy, Message: "another call makes a reply of this session"})
			return
		}
		defer s.inner.replying.Unlock()
		options, err := generationOptions(generations...)
		if err != nil {
			yield(Event{}, err)
			return
		}
		box, done := newMailbox(), make(chan struct{})
		go func() {
			defer close(done)
			defer options.close()
			user := cgo.NewHandle(box)
			defer user.Delete()
			box.end(s.inner.handle.with(func(object unsafe.Pointer) error {
				return generate((*C.qwen_session)(object), options.native, C.uintptr_t(user))
			}))
		}()
		defer s.inner.abandon(done)
		for {
			event, more, err := box.take(ctx, box.wait)
			if err != nil {
				s.inner.abandon(done)
				yield(Event{}, because(ctx, err))
				return
			}
			if !more || !yield(event, nil) {
				return
			}
		}
	}
}

// cancelInterval is how often a cancel is repeated: one that comes before the call has begun finds
// nothing to cancel.
const cancelInterval = 2 * time.Millisecond

// abandon cancels a call and waits until it has returned, which is within a step of the engine, so
// that the session is free again.
func (s *session) abandon(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		// A session that is closed has cancelled its call, and one that failed has ended it.
		_ = s.cancel(C.QWEN_CANCEL)
		select {
		case <-done:
			return
		case <-time.After(cancelInterval):
		}
	}
}

// Stop ends the reply that is being made, if one is, within one step, and keeps it.
func (s *Session) Stop() error {
	defer runtime.KeepAlive(s)
	return s.inner.cancel(C.QWEN_STOP)
}

// Cancel ends the reply that is being made, if one is, within one step, and forgets it.
func (s *Session) Cancel() error {
	defer runtime.KeepAlive(s)
	return s.inner.cancel(C.QWEN_CANCEL)
}

func (s *session) cancel(how C.int32_t) error {
	return s.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_cancel(native, how, err)
	})
}

func (s *session) with(function func(native *C.qwen_session, err **C.qwen_error) C.int32_t) error {
	return s.handle.with(func(object unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return function((*C.qwen_session)(object), err)
		})
	})
}

func (s *Session) text(
	function func(native *C.qwen_session, buf **C.qwen_buf, err **C.qwen_error) C.int32_t,
) (text []byte, err error) {
	defer runtime.KeepAlive(s)
	err = s.inner.handle.with(func(object unsafe.Pointer) (err error) {
		text, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_session)(object), buf, err)
		})
		return err
	})
	return text, err
}

// Reply is the last reply; [ErrState] where there is none.
func (s *Session) Reply() (string, error) {
	text, err := s.text(func(native *C.qwen_session, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_session_reply(native, buf, err)
	})
	return string(text), err
}

// Messages are all messages, the system message first.
func (s *Session) Messages() ([]Message, error) {
	text, err := s.text(func(native *C.qwen_session, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_session_messages_json(native, buf, err)
	})
	if err != nil {
		return nil, err
	}
	var messages []Message
	return messages, decodeInto(text, &messages)
}

// Append adds messages as they are, without the model: user and assistant messages in alternation,
// going on from the last there is. A system message at their beginning replaces the session's. All are
// appended or none. Where the last is the user's, Regenerate makes the reply.
func (s *Session) Append(messages ...Message) error {
	defer runtime.KeepAlive(s)
	text, err := messagesJSON(messages)
	if err != nil {
		return err
	}
	data, length := textOf(text)
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_append_json(native, data, length, err)
	})
}

// Truncate keeps the first turns (a turn is a user message and its reply); 0 forgets all. The system
// message stays. A number below 0 is ErrArg.
func (s *Session) Truncate(numTurns int) error {
	defer runtime.KeepAlive(s)
	if numTurns < 0 {
		return &Error{Code: ErrArg, Message: fmt.Sprintf("a session has no %d turns", numTurns)}
	}
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_truncate(native, C.uint64_t(numTurns), err)
	})
}

// SetSystem replaces the system message.
func (s *Session) SetSystem(text string) error {
	defer runtime.KeepAlive(s)
	data, length := textOf(text)
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_set_system(native, data, length, err)
	})
}

// ResetSystem makes the system message the chat format's own.
func (s *Session) ResetSystem() error {
	defer runtime.KeepAlive(s)
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_set_system(native, nil, 0, err)
	})
}

// Close cancels the reply that is being made, if one is, and lets the session go. Again, it does
// nothing.
func (s *Session) Close() error {
	defer runtime.KeepAlive(s)
	s.inner.close()
	return nil
}

func (s *session) close() {
	_ = s.cancel(C.QWEN_CANCEL)
	s.core.dismiss(s.handle)
}
