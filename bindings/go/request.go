// Requests: one reply to one prompt, as a stream, as a whole, or as an object to hold on to.

package qwen

// #include "shim.h"
import "C"

import (
	"context"
	"iter"
	"runtime"
	"strings"
	"unsafe"
)

// Stream makes a reply and yields its events as they come; the last is an EventFinished, or an error
// with an empty event. Nothing happens before the sequence is ranged over; each range is a request
// of its own. Leaving the loop, or the context's end, cancels the request within one step.
func (e *Engine) Stream(ctx context.Context, prompt Prompt) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		request, err := e.Submit(ctx, prompt)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer request.Close()
		for event, err := range request.Events() {
			if !yield(event, err) {
				return
			}
		}
	}
}

// Complete makes a whole reply.
func (e *Engine) Complete(ctx context.Context, prompt Prompt) (*Result, error) {
	return collect(e.Stream(ctx, prompt))
}

func collect(events iter.Seq2[Event, error]) (*Result, error) {
	var text, thought strings.Builder
	result, several := &Result{}, false
	for event, err := range events {
		if err != nil {
			return nil, err
		}
		if event.Kind == EventFinished {
			result.Usage = event.Usage
			if !several {
				result.Finish = event.Finish
			}
		}
		if event.Choice != 0 {
			continue
		}
		if event.Kind == EventChoiceFinished {
			result.Finish, several = event.Finish, true
		}
		switch event.Kind {
		case EventThought:
			thought.WriteString(event.Text)
		case EventToolDelta:
		case EventToolCall:
			result.ToolCall = event.ToolCall
		default:
			text.WriteString(event.Text)
		}
		result.Tokens = append(result.Tokens, event.Tokens...)
		result.Logprobs = append(result.Logprobs, event.Logprobs...)
	}
	result.Text, result.Thought = text.String(), thought.String()
	return result, nil
}

// A Request is a reply that is being made. Any goroutine may stop, cancel and close it; one reads
// its events.
type Request struct {
	inner *request
	// Whoever holds a request holds its engine, which is closed when it is garbage.
	engine *Engine
}

type request struct {
	core   *core
	handle *handle
	box    *mailbox
	tag    uint64
	ctx    context.Context
	detach func() bool
}

// Submit hands a request to the engine and returns while it runs. The request ends with the context,
// too. The caller closes it.
func (e *Engine) Submit(ctx context.Context, prompt Prompt) (*Request, error) {
	defer runtime.KeepAlive(e)
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	core := e.core
	select {
	case core.pump.entrance <- struct{}{}:
	case <-ctx.Done():
		return nil, ended(ctx)
	}
	defer func() { <-core.pump.entrance }()

	inner := &request{core: core, box: newMailbox(), ctx: ctx}
	err := core.handle.with(func(engine unsafe.Pointer) error {
		native, err := prompt.newRequest(engine)
		if err == nil {
			inner.handle = newHandle("request", native, freeRequest)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !core.adopt(inner.handle) {
		inner.handle.close()
		return nil, closedError("engine")
	}
	err = inner.handle.with(func(native unsafe.Pointer) (err error) {
		inner.tag, err = core.pump.submit(native, inner.box)
		return err
	})
	if err != nil {
		core.dismiss(inner.handle)
		return nil, err
	}
	inner.detach = context.AfterFunc(ctx, func() { inner.cancel(C.QWEN_CANCEL) })
	made := &Request{inner, e}
	runtime.AddCleanup(made, (*request).close, inner)
	return made, nil
}

func freeRequest(object unsafe.Pointer) { C.qwen_request_free((*C.qwen_request)(object)) }

// Events yields the events from where the last range over it left off, until the last one, which is
// an EventFinished, or an error with an empty event. Leaving the loop leaves the request running.
func (r *Request) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		defer runtime.KeepAlive(r)
		for {
			event, more, err := r.inner.box.take(r.inner.ctx, r.inner.core.pump.wait)
			if err != nil {
				yield(Event{}, because(r.inner.ctx, err))
				return
			}
			if !more || !yield(event, nil) {
				return
			}
		}
	}
}

// Stop ends the reply within one step and keeps it: its last event is an EventFinished.
func (r *Request) Stop() error {
	defer runtime.KeepAlive(r)
	return r.inner.cancel(C.QWEN_STOP)
}

// Cancel ends the reply within one step; its last event is [ErrCancelled].
func (r *Request) Cancel() error {
	defer runtime.KeepAlive(r)
	return r.inner.cancel(C.QWEN_CANCEL)
}

// Close cancels the request if it still runs, and lets it go. Again, it does nothing.
func (r *Request) Close() error {
	defer runtime.KeepAlive(r)
	r.inner.close()
	return nil
}

func (r *request) cancel(how C.int32_t) error {
	return r.handle.with(func(native unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_request_cancel((*C.qwen_request)(native), how, err)
		})
	})
}

func (r *request) close() {
	r.detach()
	r.core.dismiss(r.handle)
	r.core.pump.forget(r.tag)
	r.box.end(closedError("request"))
}
