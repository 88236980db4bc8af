// A session's state: edited, forked, saved and loaded.

package qwen

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Edit replaces the text of one message; index counts as Messages lists them, from 0, the system
// message. Messages after it stay as they are: Truncate forgets them, and Regenerate replies anew to
// the last one.
func (s *Session) Edit(index int, text string) error {
	defer runtime.KeepAlive(s)
	if index < 0 {
		return &Error{Code: ErrArg, Message: "index: no message has a negative one"}
	}
	data, length := textOf(text)
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_edit(native, C.uint64_t(index), data, length, err)
	})
}

// Fork makes a second conversation that begins with all messages of this one; from here on each goes
// its own way. What both begin with is computed once, as long as the prefix cache has it. The caller
// closes it; the engine's Close does so as well.
func (s *Session) Fork() (*Session, error) {
	defer runtime.KeepAlive(s)
	var native *C.qwen_session
	err := s.inner.with(func(session *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_fork(session, &native, err)
	})
	if err != nil {
		return nil, err
	}
	return ownSession(s.engine, native)
}

// Save gives the whole state of the session as bytes that Load takes, to be kept wherever you like.
func (s *Session) Save() ([]byte, error) {
	return s.text(func(native *C.qwen_session, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_session_save(native, buf, err)
	})
}

// Load replaces all messages by those that Save saved: [ErrCorrupt] for bytes that are not of that,
// [ErrStateMismatch] for those of another model. If it fails, the session is as it was.
func (s *Session) Load(saved []byte) error {
	defer runtime.KeepAlive(s)
	data, length := (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(saved))), C.uint64_t(len(saved))
	return s.inner.with(func(native *C.qwen_session, err **C.qwen_error) C.int32_t {
		return C.qwen_session_load(native, data, length, err)
	})
}
