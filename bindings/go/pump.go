// The pump: how events come from the engine's one completion queue to their requests' mailboxes. A
// goroutine that waits inside C holds an OS thread, so only one does, however many requests there
// are: the readers take turns. Whoever has the turn hands out what comes, also to the others, and
// gives the turn on. So a reader that is alone gets its events without waking another goroutine,
// which would cost more than all the rest.

package qwen

// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
	"unsafe"
)

const (
	// pumpBatch is how many events are taken at once.
	pumpBatch = 128
	// pumpWait is how long a reader stays inside C at most before it looks at its context again. An
	// engine that works answers a cancel much sooner; this is for one that does not.
	pumpWait = 100 * time.Millisecond
)

type pump struct {
	queue *handle
	// In C's memory: of Go's, the runtime would look at every pointer before every call.
	views *handle
	// Has an element while somebody has the turn.
	turn chan struct{}
	// Calls that submit, at once: each can hold an OS thread while it renders its prompt.
	entrance chan struct{}

	mu      sync.Mutex
	lastTag uint64
	boxes   map[uint64]*mailbox
}

func (p *pump) open() error {
	var queue *C.qwen_queue
	err := call(func(err **C.qwen_error) C.int32_t { return C.qwen_queue_new(&queue, err) })
	if err != nil {
		return err
	}
	p.queue = newHandle("engine", unsafe.Pointer(queue), func(object unsafe.Pointer) {
		C.qwen_queue_free((*C.qwen_queue)(object))
	})
	memory := C.calloc(pumpBatch, C.sizeof_qwen_go_event)
	if memory == nil {
		p.queue.close()
		return &Error{Code: ErrOOMHost, Message: "no memory for a batch of events"}
	}
	p.views = newHandle("engine", memory, func(object unsafe.Pointer) { C.free(object) })
	p.turn = make(chan struct{}, 1)
	p.entrance = make(chan struct{}, max(4, runtime.GOMAXPROCS(0)))
	p.boxes = map[uint64]*mailbox{}
	return nil
}

// close hands out what has come, and lets the queue go. The engine has ended, so nothing comes later.
func (p *pump) close() {
	p.turn <- struct{}{}
	for p.round(0) == nil {
	}
	<-p.turn
	p.queue.close()
	p.views.close()
}

// submit hands a request to the engine; its events come to the mailbox until tag is forgotten.
func (p *pump) submit(request unsafe.Pointer, box *mailbox) (tag uint64, err error) {
	p.mu.Lock()
	p.lastTag++
	tag = p.lastTag
	p.boxes[tag] = box
	p.mu.Unlock()

	err = p.queue.with(func(queue unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_request_submit((*C.qwen_request)(request), (*C.qwen_queue)(queue), C.uint64_t(tag), err)
		})
	})
	if err != nil {
		p.forget(tag)
		return 0, err
	}
	return tag, nil
}

func (p *pump) forget(tag uint64) {
	p.mu.Lock()
	delete(p.boxes, tag)
	p.mu.Unlock()
}

// wait returns when the mailbox may have something, or the context has ended.
func (p *pump) wait(ctx context.Context, box *mailbox) {
	select {
	case <-box.news:
		return
	case <-ctx.Done():
		return
	case p.turn <- struct{}{}:
	}
	defer func() { <-p.turn }()
	// Only who has the turn hands out, so what is here now is all that has come.
	if box.empty() {
		err := p.round(pumpWait)
		if err != nil && !errors.Is(err, ErrTimeout) && box.empty() {
			// The queue has nothing more for anybody: no last event will come.
			box.end(err)
		}
	}
}

// round waits for events and hands them out. It is called by who has the turn.
func (p *pump) round(timeout time.Duration) error {
	memory, err := p.views.enter()
	if err != nil {
		return err
	}
	defer p.views.leave()
	views := unsafe.Slice((*C.qwen_go_event)(memory), pumpBatch)
	var events *C.qwen_events
	var count C.uint64_t
	err = p.queue.with(func(queue unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			wait := C.int64_t(timeout.Milliseconds())
			return C.qwen_go_queue_next((*C.qwen_queue)(queue), pumpBatch, wait, &events, &views[0], &count, err)
		})
	})
	defer C.qwen_events_free(events)
	for i := range views[:count] {
		p.deliver(&views[i])
	}
	return err
}

func (p *pump) deliver(view *C.qwen_go_event) {
	p.mu.Lock()
	box := p.boxes[uint64(view.tag)]
	last := view.kind == C.QWEN_EVENT_FINISHED || view.kind == C.QWEN_EVENT_FAILED
	if last {
		delete(p.boxes, uint64(view.tag))
	}
	p.mu.Unlock()
	if box == nil {
		return
	}
	event, err := eventOf(view)
	if err == nil || event.Text != "" || len(event.Tokens) > 0 {
		box.put(event)
	}
	if last {
		box.end(err)
	}
}
