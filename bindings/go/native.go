// The way into the C library: every call that can fail goes through call. Texts cross as pointer
// and length, and the library copies what it keeps.

package qwen

// #cgo pkg-config: qwen
// #include "shim.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"unsafe"
)

// call runs one function of the library that takes an error object last, and makes its failure a
// Go error.
func call(function func(err **C.qwen_error) C.int32_t) error {
	stress()
	var raw *C.qwen_error
	status := function(&raw)
	stress()
	if status == C.QWEN_OK {
		return nil
	}
	if raw == nil {
		return &Error{Code: Code(status), Message: Code(status).String()}
	}
	defer C.qwen_error_free(raw)
	return errorOf(raw)
}

// errorOf copies an error of the library, which stays whose it was.
func errorOf(raw *C.qwen_error) *Error {
	return &Error{
		Code:    Code(C.qwen_error_code(raw)),
		Message: C.GoString(C.qwen_error_message(raw)),
		Detail:  json.RawMessage(C.GoString(C.qwen_error_detail_json(raw))),
	}
}

// aByte is what the pointer of an empty text points to: NULL means something else to some calls.
var aByte = [1]byte{}

// textOf gives the bytes of a Go string to C for the time of one call.
func textOf(text string) (*C.char, C.uint64_t) {
	if text == "" {
		return (*C.char)(unsafe.Pointer(&aByte[0])), 0
	}
	return (*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.uint64_t(len(text))
}

// idsOf gives token ids to C for the time of one call.
func idsOf(ids []uint32) (*C.uint32_t, C.uint64_t) {
	return (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(ids))), C.uint64_t(len(ids))
}

// takeBytes runs a call that makes a buffer, and copies it.
func takeBytes(function func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t) ([]byte, error) {
	var buf *C.qwen_buf
	if err := call(func(err **C.qwen_error) C.int32_t { return function(&buf, err) }); err != nil {
		return nil, err
	}
	defer C.qwen_buf_free(buf)
	size := int(C.qwen_buf_len(buf))
	taken := make([]byte, size)
	if size > 0 {
		copy(taken, unsafe.Slice((*byte)(unsafe.Pointer(C.qwen_buf_data(buf))), size))
	}
	return taken, nil
}

// takeTokens runs a call that makes a list of token ids, and copies it.
func takeTokens(function func(tokens **C.qwen_tokens, err **C.qwen_error) C.int32_t) ([]uint32, error) {
	var tokens *C.qwen_tokens
	if err := call(func(err **C.qwen_error) C.int32_t { return function(&tokens, err) }); err != nil {
		return nil, err
	}
	defer C.qwen_tokens_free(tokens)
	length := C.qwen_tokens_len(tokens)
	if length == 0 {
		// The pointer may be any number then, which Go's stack must not hold.
		return []uint32{}, nil
	}
	return copyIDs(C.qwen_tokens_data(tokens), length), nil
}

// copyIDs copies at least one id.
func copyIDs(data *C.uint32_t, length C.uint64_t) []uint32 {
	ids := make([]uint32, int(length))
	copy(ids, unsafe.Slice((*uint32)(unsafe.Pointer(data)), len(ids)))
	return ids
}

// decodeInto reads JSON that the library wrote.
func decodeInto(text []byte, value any) error {
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("qwen: JSON of the library: %w", err)
	}
	return nil
}

// abiError is why the loaded library cannot serve this package; every way in answers with it.
var abiError = checkABI(abiVersion)

func checkABI(version uint32) error {
	return call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_check_abi(C.uint32_t(version), err)
	})
}

// Version is the version of the library that is loaded, such as "1.2.3".
func Version() string { return C.GoString(C.qwen_version()) }

// ABIVersion is the ABI of the library that is loaded.
func ABIVersion() uint32 { return uint32(C.qwen_abi_version()) }

// BuildInfo says how the loaded library was built.
type BuildInfo struct {
	Version    string `json:"version"`
	ABIVersion uint32 `json:"abi_version"`
	Target     string `json:"target"`
	Profile    string `json:"profile"`
	// Whether it can use a GPU.
	CUDA bool `json:"cuda"`
}

// Build returns how the loaded library was built.
func Build() (BuildInfo, error) {
	var info BuildInfo
	text, err := takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_build_info_json(buf, err)
	})
	if err != nil {
		return info, err
	}
	return info, decodeInto(text, &info)
}
