// The tokenizer: text to token ids and back, whole or as they come.

package qwen

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// A Tokenizer is a checkpoint's vocabulary. Any goroutine may use it, several at once.
type Tokenizer struct{ handle *handle }

// TokenizerInfo is the size of a vocabulary, and its control tokens.
type TokenizerInfo struct {
	NumTokens int    `json:"num_tokens"`
	EndOfText uint32 `json:"end_of_text"`
	IMStart   uint32 `json:"im_start"`
	IMEnd     uint32 `json:"im_end"`
}

// OpenTokenizer reads the vocabulary (qwen.tiktoken or tokenizer.json) in a folder; no weights are
// needed.
func OpenTokenizer(folder string) (*Tokenizer, error) {
	if abiError != nil {
		return nil, abiError
	}
	path, length := textOf(folder)
	return newTokenizer(func(tokenizer **C.qwen_tokenizer, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_open(path, length, tokenizer, err)
	})
}

// Tokenizer is the engine's; it may outlive the engine. The caller closes it.
func (e *Engine) Tokenizer() (made *Tokenizer, err error) {
	defer runtime.KeepAlive(e)
	err = e.core.handle.with(func(engine unsafe.Pointer) (err error) {
		made, err = newTokenizer(func(tokenizer **C.qwen_tokenizer, err **C.qwen_error) C.int32_t {
			return C.qwen_tokenizer_of_engine((*C.qwen_engine)(engine), tokenizer, err)
		})
		return err
	})
	return made, err
}

func newTokenizer(function func(tokenizer **C.qwen_tokenizer, err **C.qwen_error) C.int32_t) (*Tokenizer, error) {
	var native *C.qwen_tokenizer
	if err := call(func(err **C.qwen_error) C.int32_t { return function(&native, err) }); err != nil {
		return nil, err
	}
	made := &Tokenizer{newHandle("tokenizer", unsafe.Pointer(native), func(object unsafe.Pointer) {
		C.qwen_tokenizer_free((*C.qwen_tokenizer)(object))
	})}
	runtime.AddCleanup(made, (*handle).close, made.handle)
	return made, nil
}

// Encode turns text into token ids. Without EncodeParseSpecials no text becomes a control token.
func (t *Tokenizer) Encode(text string, flags ...EncodeFlag) ([]uint32, error) {
	data, length := textOf(text)
	return t.tokens(func(native *C.qwen_tokenizer, tokens **C.qwen_tokens, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_encode(native, data, length, C.uint32_t(allOf(flags)), tokens, err)
	})
}

// Decode turns token ids into bytes; ids outside the vocabulary give none, and special tokens none
// without DecodeKeepSpecials. The bytes can end in the middle of a character.
func (t *Tokenizer) Decode(ids []uint32, flags ...DecodeFlag) ([]byte, error) {
	data, length := idsOf(ids)
	return t.bytes(func(native *C.qwen_tokenizer, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_decode(native, data, length, C.uint32_t(allOf(flags)), buf, err)
	})
}

// TokenBytes are the bytes of one token, a special token's name.
func (t *Tokenizer) TokenBytes(id uint32) ([]byte, error) {
	return t.bytes(func(native *C.qwen_tokenizer, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_token_bytes(native, C.uint32_t(id), buf, err)
	})
}

// RenderChat turns a conversation into the prompt that a [Chat] gives the model. No content can
// become a control token. Turns older than maxWindowSize tokens are left out; 0 keeps all.
func (t *Tokenizer) RenderChat(messages []Message, maxWindowSize int) ([]uint32, error) {
	text, err := messagesJSON(messages)
	if err != nil {
		return nil, err
	}
	data, length := textOf(text)
	window := C.uint64_t(max(maxWindowSize, 0))
	return t.tokens(func(native *C.qwen_tokenizer, tokens **C.qwen_tokens, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_render_chat_json(native, data, length, window, tokens, err)
	})
}

// Info is the vocabulary's size and control tokens.
func (t *Tokenizer) Info() (TokenizerInfo, error) {
	var info TokenizerInfo
	text, err := t.bytes(func(native *C.qwen_tokenizer, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_tokenizer_info_json(native, buf, err)
	})
	if err != nil {
		return info, err
	}
	return info, decodeInto(text, &info)
}

// Close lets the tokenizer go. Again, it does nothing.
func (t *Tokenizer) Close() error {
	t.handle.close()
	return nil
}

func (t *Tokenizer) bytes(
	function func(native *C.qwen_tokenizer, buf **C.qwen_buf, err **C.qwen_error) C.int32_t,
) (taken []byte, err error) {
	defer runtime.KeepAlive(t)
	err = t.handle.with(func(object unsafe.Pointer) (err error) {
		taken, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_tokenizer)(object), buf, err)
		})
		return err
	})
	return taken, err
}

func (t *Tokenizer) tokens(
	function func(native *C.qwen_tokenizer, tokens **C.qwen_tokens, err **C.qwen_error) C.int32_t,
) (taken []uint32, err error) {
	defer runtime.KeepAlive(t)
	err = t.handle.with(func(object unsafe.Pointer) (err error) {
		taken, err = takeTokens(func(tokens **C.qwen_tokens, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_tokenizer)(object), tokens, err)
		})
		return err
	})
	return taken, err
}

func allOf[Flag ~uint32](flags []Flag) (all Flag) {
	for _, flag := range flags {
		all |= flag
	}
	return all
}

// A Detokenizer is the text of a sequence of ids, for callers that stream ids themselves. It keeps
// back a character whose last byte is still to come. Any goroutine may use it; calls take turns.
type Detokenizer struct{ handle *handle }

// NewDetokenizer begins a text. The caller closes it.
func (t *Tokenizer) NewDetokenizer() (*Detokenizer, error) {
	defer runtime.KeepAlive(t)
	var native *C.qwen_detok
	err := t.handle.with(func(object unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_detok_new((*C.qwen_tokenizer)(object), &native, err)
		})
	})
	if err != nil {
		return nil, err
	}
	made := &Detokenizer{newHandle("detokenizer", unsafe.Pointer(native), func(object unsafe.Pointer) {
		C.qwen_detok_free((*C.qwen_detok)(object))
	})}
	runtime.AddCleanup(made, (*handle).close, made.handle)
	return made, nil
}

// Push takes the next ids and gives the text that is now complete: whole characters, perhaps none;
// bytes that are no UTF-8 as U+FFFD. Special tokens give no text.
func (d *Detokenizer) Push(ids ...uint32) (string, error) {
	data, length := idsOf(ids)
	return d.text(func(native *C.qwen_detok, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_detok_push(native, data, length, buf, err)
	})
}

// Finish ends the text and gives what was kept back: U+FFFD for a character that never became
// complete. The next Push begins another text.
func (d *Detokenizer) Finish() (string, error) {
	return d.text(func(native *C.qwen_detok, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_detok_finish(native, buf, err)
	})
}

// Close lets the detokenizer go. Again, it does nothing.
func (d *Detokenizer) Close() error {
	d.handle.close()
	return nil
}

func (d *Detokenizer) text(
	function func(native *C.qwen_detok, buf **C.qwen_buf, err **C.qwen_error) C.int32_t,
) (string, error) {
	defer runtime.KeepAlive(d)
	var taken []byte
	err := d.handle.with(func(object unsafe.Pointer) (err error) {
		taken, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_detok)(object), buf, err)
		})
		return err
	})
	return string(taken), err
}
