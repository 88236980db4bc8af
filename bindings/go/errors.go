// Errors: one type, one code each, and the codes as sentinels.

package qwen

// #include "shim.h"
import "C"

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"unicode/utf8"
)

// A Code is a status of the library. The codes, Err..., are errors themselves: the sentinels that
// [errors.Is] finds in an [*Error]. Later libraries may have codes that no name here has.
type Code int32

// String is the code's name in C, such as "QWEN_E_UTF8".
func (code Code) String() string { return C.GoString(C.qwen_status_name(C.int32_t(code))) }

// Error is the code as an error without details.
func (code Code) Error() string { return "qwen: " + code.String() }

// An Error says why a call failed.
type Error struct {
	Code Code
	// One sentence for people.
	Message string
	// A JSON object for programs: the key, path, tensor, offset, bytes, as the code has them.
	Detail json.RawMessage

	cause []error
}

func (e *Error) Error() string { return "qwen: " + e.Message }

// Is makes an error equal to its code, and a missing file's to fs.ErrNotExist.
func (e *Error) Is(target error) bool {
	return target == error(e.Code) || e.Code == ErrNotFound && target == fs.ErrNotExist
}

// Unwrap is the context's error and its cause, where a context ended the call.
func (e *Error) Unwrap() []error { return e.cause }

// ended is the error of a call that its context ended.
func ended(ctx context.Context) error {
	cause := []error{ctx.Err()}
	if why := context.Cause(ctx); why != ctx.Err() {
		cause = append(cause, why)
	}
	return &Error{Code: ErrCancelled, Message: "cancelled: " + context.Cause(ctx).Error(), cause: cause}
}

// because gives the library's own "cancelled" the context as its cause, if that ended the call.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ErrCancelled) {
		return ended(ctx)
	}
	return err
}

func closedError(what string) error {
	return &Error{Code: ErrClosed, Message: "the " + what + " is closed"}
}

// checkText refuses text that is not UTF-8, which encoding/json would change without a word.
func checkText(what, text string) error {
	if utf8.ValidString(text) {
		return nil
	}
	offset := 0
	for {
		char, size := utf8.DecodeRuneInString(text[offset:])
		if char == utf8.RuneError && size == 1 {
			break
		}
		offset += size
	}
	return &Error{
		Code:    ErrUTF8,
		Message: fmt.Sprintf("%s is not UTF-8 at byte %d", what, offset),
		Detail:  json.RawMessage(fmt.Sprintf(`{"offset":%d}`, offset)),
	}
}
