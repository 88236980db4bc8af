// The pump: one goroutine for each engine waits in the completion queue, and hands the events to
// their requests' mailboxes. A goroutine that waits inside C holds an OS thread; here only one does,
// however many requests there are. It runs while there are any.

package qwen

// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"errors"
	"runtime"
	"sync"
	"unsafe"
)

// pumpBatch is how many events are taken at once.
const pumpBatch = 128

type pump struct {
	queue *handle
	// Calls that submit, at once: each can hold an OS thread while it renders its prompt.
	entrance chan struct{}

	mu       sync.Mutex
	running  bool
	rounds   uint64
	lastTag  uint64
	receiver map[uint64]*receiver
}

// A receiver is a request that expects events.
type receiver struct {
	*mailbox
	// The round in which the library took the request; 0 before that.
	since uint64
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
	p.entrance = make(chan struct{}, max(4, runtime.GOMAXPROCS(0)))
	p.receiver = map[uint64]*receiver{}
	return nil
}

// close lets the queue go as soon as the goroutine has left it.
func (p *pump) close() { p.queue.close() }

// submit hands a request to the engine; its events come to the mailbox until tag is forgotten.
func (p *pump) submit(request unsafe.Pointer, box *mailbox) (tag uint64, err error) {
	p.mu.Lock()
	p.lastTag++
	tag = p.lastTag
	entry := &receiver{mailbox: box}
	p.receiver[tag] = entry
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
	p.mu.Lock()
	defer p.mu.Unlock()
	entry.since = p.rounds + 1
	if !p.running {
		p.running = true
		go p.run()
	}
	return tag, nil
}

func (p *pump) forget(tag uint64) {
	p.mu.Lock()
	delete(p.receiver, tag)
	p.mu.Unlock()
}

func (p *pump) run() {
	// In C's memory: of Go's, the runtime would look at every pointer before every call.
	memory := C.calloc(pumpBatch, C.sizeof_qwen_go_event)
	defer C.free(memory)
	views := unsafe.Slice((*C.qwen_go_event)(memory), pumpBatch)
	for {
		p.mu.Lock()
		p.rounds++
		p.mu.Unlock()
		var events *C.qwen_events
		err := p.queue.with(func(queue unsafe.Pointer) error {
			var count C.uint64_t
			err := call(func(err **C.qwen_error) C.int32_t {
				return C.qwen_go_queue_next((*C.qwen_queue)(queue), pumpBatch, &events, &views[0], &count, err)
			})
			for i := range views[:count] {
				p.deliver(&views[i])
			}
			return err
		})
		C.qwen_events_free(events)
		if err != nil && p.stop(err) {
			return
		}
		// Those that got something run first, on this thread; inside C nobody else can use it.
		runtime.Gosched()
	}
}

func (p *pump) deliver(view *C.qwen_go_event) {
	p.mu.Lock()
	entry := p.receiver[uint64(view.tag)]
	last := view.kind == C.QWEN_EVENT_FINISHED || view.kind == C.QWEN_EVENT_FAILED
	if last {
		delete(p.receiver, uint64(view.tag))
	}
	p.mu.Unlock()
	if entry == nil {
		return
	}
	event, err := eventOf(view)
	if err == nil || event.Text != "" || len(event.Tokens) > 0 {
		entry.put(event)
	}
	if last {
		entry.end(err)
	}
}

// stop ends the goroutine where no request is left. A request that was taken before this round and
// has no last event will never get one: it ends here rather than wait for ever.
func (p *pump) stop(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := false
	for tag, entry := range p.receiver {
		lost := entry.since != 0 && entry.since <= p.rounds
		if lost || !errors.Is(err, ErrEnd) {
			delete(p.receiver, tag)
			entry.end(err)
		} else if entry.since != 0 {
			waiting = true
		}
	}
	p.running = waiting
	return !waiting
}
