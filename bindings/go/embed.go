// Embeddings: a text's final hidden states.

package qwen

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// An Embedding says what [Engine.Embed] returns.
type Embedding struct {
	// Of which tokens; 0 is PoolLast.
	Pooling Pooling
	// Each state is scaled to length 1.
	Normalize bool
}

// Embed returns the model's hidden states of text behind its last norm, as many numbers as the model has
// dimensions, with PoolNone so many for each token. They are a chat model's states; nothing has trained
// them as embeddings. It holds an OS thread until it has the result. Of the options, Priority, the time
// limits and, with PoolLast, Cache count.
func (e *Engine) Embed(text string, embedding Embedding, generations ...Generation) ([]float32, error) {
	chars, length := textOf(text)
	return e.embed(embedding, generations, func(engine *C.qwen_engine, pooling C.int32_t, normalize C.uint8_t,
		options *C.qwen_options, states **C.qwen_floats, err **C.qwen_error) C.int32_t {
		return C.qwen_embed(engine, chars, length, pooling, normalize, options, states, err)
	})
}

// EmbedTokens is Embed of token ids.
func (e *Engine) EmbedTokens(ids []uint32, embedding Embedding, generations ...Generation) ([]float32, error) {
	first, length := idsOf(ids)
	return e.embed(embedding, generations, func(engine *C.qwen_engine, pooling C.int32_t, normalize C.uint8_t,
		options *C.qwen_options, states **C.qwen_floats, err **C.qwen_error) C.int32_t {
		return C.qwen_embed_tokens(engine, first, length, pooling, normalize, options, states, err)
	})
}

func (e *Engine) embed(
	embedding Embedding,
	generations []Generation,
	function func(engine *C.qwen_engine, pooling C.int32_t, normalize C.uint8_t,
		options *C.qwen_options, states **C.qwen_floats, err **C.qwen_error) C.int32_t,
) ([]float32, error) {
	defer runtime.KeepAlive(e)
	options, err := generationOptions(generations...)
	if err != nil {
		return nil, err
	}
	defer options.close()
	pooling, normalize := max(embedding.Pooling, PoolLast), C.uint8_t(0)
	if embedding.Normalize {
		normalize = 1
	}
	var states *C.qwen_floats
	err = e.core.handle.with(func(engine unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return function((*C.qwen_engine)(engine), C.int32_t(pooling), normalize, options.native, &states, err)
		})
	})
	if err != nil {
		return nil, err
	}
	defer C.qwen_floats_free(states)
	taken := make([]float32, int(C.qwen_floats_len(states)))
	copy(taken, unsafe.Slice((*float32)(unsafe.Pointer(C.qwen_floats_data(states))), len(taken)))
	return taken, nil
}
