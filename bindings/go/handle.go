// Handles: a C object with the number of calls that are inside of it. It is freed when it is closed
// and the last of them has left, so Close never pulls an object away from under a call.

package qwen

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// liveHandles counts the C objects held, for the tests.
var liveHandles atomic.Int64

type handle struct {
	what string
	free func(unsafe.Pointer)

	mu     sync.Mutex
	object unsafe.Pointer
	inside int
	closed bool
}

func newHandle(what string, object unsafe.Pointer, free func(unsafe.Pointer)) *handle {
	liveHandles.Add(1)
	return &handle{what: what, free: free, object: object}
}

// enter gives the object to a call, which must leave.
func (h *handle) enter() (unsafe.Pointer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, closedError(h.what)
	}
	h.inside++
	return h.object, nil
}

func (h *handle) leave() {
	h.mu.Lock()
	h.inside--
	last := h.closed && h.inside == 0
	h.mu.Unlock()
	if last {
		h.release()
	}
}

// with runs a call inside the handle.
func (h *handle) with(function func(object unsafe.Pointer) error) error {
	object, err := h.enter()
	if err != nil {
		return err
	}
	defer h.leave()
	return function(object)
}

// close lets nobody in any more. Again, it does nothing.
func (h *handle) close() {
	h.mu.Lock()
	now := !h.closed && h.inside == 0
	h.closed = true
	h.mu.Unlock()
	if now {
		h.release()
	}
}

func (h *handle) release() {
	stress()
	h.free(h.object)
	liveHandles.Add(-1)
}
