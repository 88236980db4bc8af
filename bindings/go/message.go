// Messages, prompts, events and results: what goes to the model and what comes back.

package qwen

// #include "shim.h"
import "C"

import (
	"encoding/json"
	"strconv"
	"unsafe"
)

// A Message is one message of a conversation.
type Message struct {
	// "system", "user", "assistant" or "tool".
	Role    string `json:"role"`
	Content string `json:"content"`
	// The tool that an assistant's message calls: one at most.
	ToolCalls []ToolCall `json:"tool_calls,omitempty"`
	// Which call a tool's message answers.
	ToolCallID string `json:"tool_call_id,omitempty"`
}

// System is a system message.
func System(content string) Message { return Message{Role: "system", Content: content} }

// User is a user's message.
func User(content string) Message { return Message{Role: "user", Content: content} }

// Assistant is a reply of the model.
func Assistant(content string) Message { return Message{Role: "assistant", Content: content} }

// ToolResult is the result of a tool that the model called.
func ToolResult(call ToolCall, content string) Message {
	return Message{Role: "tool", Content: content, ToolCallID: call.ID}
}

func messagesJSON(messages []Message) (string, error) {
	for i, message := range messages {
		if err := checkText("messages["+strconv.Itoa(i)+"]", message.Content); err != nil {
			return "", err
		}
	}
	if messages == nil {
		messages = []Message{}
	}
	text, err := json.Marshal(messages)
	return string(text), err
}

// A Prompt is what a request continues: a [Chat] or [Tokens].
type Prompt interface {
	newRequest(engine unsafe.Pointer) (unsafe.Pointer, error)
}

// Chat is a conversation that ends with a user's message, and how to reply to it.
type Chat struct {
	Messages   []Message
	Generation Generation
}

// Tokens are token ids, which the model gets as they are, and how to continue them.
type Tokens struct {
	IDs        []uint32
	Generation Generation
}

func (chat Chat) newRequest(engine unsafe.Pointer) (unsafe.Pointer, error) {
	messages, err := messagesJSON(chat.Messages)
	if err != nil {
		return nil, err
	}
	data, length := textOf(messages)
	return newRequest(chat.Generation, func(options *C.qwen_options, request **C.qwen_request, err **C.qwen_error) C.int32_t {
		return C.qwen_request_new_chat((*C.qwen_engine)(engine), data, length, options, request, err)
	})
}

func (tokens Tokens) newRequest(engine unsafe.Pointer) (unsafe.Pointer, error) {
	data, length := idsOf(tokens.IDs)
	return newRequest(tokens.Generation, func(options *C.qwen_options, request **C.qwen_request, err **C.qwen_error) C.int32_t {
		return C.qwen_request_new_tokens((*C.qwen_engine)(engine), data, length, options, request, err)
	})
}

func newRequest(
	generation Generation,
	make func(options *C.qwen_options, request **C.qwen_request, err **C.qwen_error) C.int32_t,
) (unsafe.Pointer, error) {
	options, err := generationOptions(generation)
	if err != nil {
		return nil, err
	}
	defer options.close()
	var request *C.qwen_request
	err = call(func(err **C.qwen_error) C.int32_t { return make(options.native, &request, err) })
	return unsafe.Pointer(request), err
}

// Usage counts tokens.
type Usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	// Tokens of the prompt that were not computed, because the prefix cache had them.
	CachedTokens int `json:"cached_tokens"`
}

// An Event is news of a reply. Text that nobody took in time comes as one event.
type Event struct {
	// Later libraries may have kinds that no name here has: pass over them.
	Kind EventKind
	// Which of the N replies it is about, from 0.
	Choice int
	// New text, whole characters always; any kind may bring some.
	Text string
	// The ids of the tokens generated since the last event.
	Tokens []uint32
	// Of all of Tokens, in their order, with the option Logprobs; nil without.
	Logprobs []TokenLogprob
	// The call that an EventToolDelta or EventToolCall tells of.
	ToolCall *ToolCall
	// Why the reply ended, on an EventFinished.
	Finish FinishReason
	// The tokens of the whole request, on an EventFinished.
	Usage Usage

	// What the model wrote, where that is not Text.
	raw []byte
}

// Bytes are the bytes that the model wrote for Text. They differ from it where they are no UTF-8,
// which is U+FFFD in Text.
func (event Event) Bytes() []byte {
	if event.raw != nil {
		return event.raw
	}
	return []byte(event.Text)
}

// eventOf copies an event, and the error it may carry.
func eventOf(view *C.qwen_go_event) (Event, error) {
	event := Event{
		Kind:   EventKind(view.kind),
		Choice: int(view.choice),
		Finish: FinishReason(view.finish),
		Usage: Usage{
			PromptTokens: int(view.prompt_tokens), CompletionTokens: int(view.completion_tokens),
			CachedTokens: int(view.cached_tokens),
		},
	}
	if view.text_len > 0 {
		event.Text = copyText(view.text, view.text_len)
	}
	if view.num_ids > 0 {
		event.Tokens = copyIDs(view.ids, view.num_ids)
	}
	event.ToolCall = toolCallOf(view)
	// Of no bytes the pointer may be any number, which Go's stack must not hold.
	var written []byte
	if view.bytes_len > 0 {
		written = unsafe.Slice((*byte)(unsafe.Pointer(view.bytes)), int(view.bytes_len))
	}
	if string(written) != event.Text {
		event.raw = append([]byte{}, written...)
	}
	if view.error != nil {
		return event, errorOf(view.error)
	}
	var err error
	event.Logprobs, err = logprobsOf(view)
	return event, err
}

// A Result is a whole reply: of several, the first.
type Result struct {
	Text   string
	Tokens []uint32
	// Of all of Tokens, with the option Logprobs.
	Logprobs []TokenLogprob
	// With tools: what the model said to itself, and the call that the reply ends with, if it does.
	Thought  string
	ToolCall *ToolCall
	Finish   FinishReason
	Usage    Usage
}
