// Scores: how likely the model finds a text behind another, as evaluation harnesses ask.

package qwen

// #include "shim.h"
import "C"

import (
	"encoding/json"
	"runtime"
	"unsafe"
)

// A Score is the log-likelihood of a continuation.
type Score struct {
	// The sum over its tokens, as natural logarithms.
	Logprob float64 `json:"logprob"`
	// Each of its tokens is the likeliest in its place.
	IsGreedy bool          `json:"is_greedy"`
	Tokens   []ScoredToken `json:"tokens"`
}

// A ScoredToken is one token of a continuation.
type ScoredToken struct {
	ID       uint32  `json:"id"`
	Token    string  `json:"token"`
	Logprob  float64 `json:"logprob"`
	IsGreedy bool    `json:"is_greedy"`
}

// Score tells how likely the model finds continuation behind context, which the model gets as it is,
// without a chat's form; an empty context stands for the beginning of a text. It holds an OS thread until
// it has the result. Of the options, TopLogprobs, Priority and the time limits count.
func (e *Engine) Score(context, continuation string, generations ...Generation) (*Score, error) {
	before, beforeLength := textOf(context)
	after, afterLength := textOf(continuation)
	return e.score(generations, func(engine *C.qwen_engine, options *C.qwen_options, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_score(engine, before, beforeLength, after, afterLength, options, buf, err)
	})
}

// ScoreTokens is Score of token ids; an empty context is an error then.
func (e *Engine) ScoreTokens(context, continuation []uint32, generations ...Generation) (*Score, error) {
	before, beforeLength := idsOf(context)
	after, afterLength := idsOf(continuation)
	return e.score(generations, func(engine *C.qwen_engine, options *C.qwen_options, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_score_tokens(engine, before, beforeLength, after, afterLength, options, buf, err)
	})
}

func (e *Engine) score(
	generations []Generation,
	function func(engine *C.qwen_engine, options *C.qwen_options, buf **C.qwen_buf, err **C.qwen_error) C.int32_t,
) (*Score, error) {
	defer runtime.KeepAlive(e)
	options, err := generationOptions(generations...)
	if err != nil {
		return nil, err
	}
	defer options.close()
	var text []byte
	err = e.core.handle.with(func(engine unsafe.Pointer) (err error) {
		text, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_engine)(engine), options.native, buf, err)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var score Score
	return &score, json.Unmarshal(text, &score)
}
