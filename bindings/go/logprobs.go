// Log-probabilities: how likely the model found the tokens of a reply, and which others.

package qwen

// #include "shim.h"
import "C"

import "unsafe"

// A Logprob is a token and how likely the model found it.
type Logprob struct {
	ID uint32
	// The token's bytes, of a control token those of its name. Not always whole characters.
	Bytes []byte
	// The natural logarithm of its probability by the model's own logits: before logit_bias,
	// penalties, temperature and everything after it.
	Logprob float64
}

// A TokenLogprob is a token of a reply, with the likeliest tokens in its place, as many as the option
// TopLogprobs says.
type TokenLogprob struct {
	Logprob
	Top []Logprob
}

// logprobsOf copies an event's log-probabilities; none where the option Logprobs is not set.
func logprobsOf(view *C.qwen_go_event) ([]TokenLogprob, error) {
	var all []TokenLogprob
	for index := C.uint64_t(0); index < view.num_logprobs; index++ {
		var one TokenLogprob
		var err error
		if one.Logprob, err = logprobOf(view.event, index, 0); err != nil {
			return all, err
		}
		top := C.qwen_event_num_top_logprobs(view.event, index)
		for rank := C.uint64_t(1); rank <= top; rank++ {
			likely, err := logprobOf(view.event, index, rank)
			if err != nil {
				return all, err
			}
			one.Top = append(one.Top, likely)
		}
		all = append(all, one)
	}
	return all, nil
}

func logprobOf(event *C.qwen_event, index, rank C.uint64_t) (Logprob, error) {
	native := C.qwen_logprob{struct_size: C.sizeof_qwen_logprob}
	err := call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_event_logprob(event, index, rank, &native, err)
	})
	if err != nil {
		return Logprob{}, err
	}
	bytes := C.GoBytes(unsafe.Pointer(native.bytes), C.int(native.bytes_len))
	return Logprob{ID: uint32(native.id), Bytes: bytes, Logprob: float64(native.logprob)}, nil
}
