// Generation: both completion endpoints, whole and streamed.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// decode reads one JSON value.
func decode(body io.Reader, value any) error {
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	// encoding/json would put other characters in the place of such bytes, without a word.
	if !utf8.Valid(text) {
		return badRequest("", "the request is not UTF-8")
	}
	if err := json.Unmarshal(text, value); err != nil {
		return badRequest("", "the request is not the JSON that is expected: "+err.Error())
	}
	return nil
}

// A message of OpenAI's API: its content is a text, or parts of which only texts are known here.
type message struct {
	Role       string
	Content    content
	ToolCalls  []qwen.ToolCall `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
}

type content string

func (c *content) UnmarshalJSON(text []byte) error {
	var parts []struct{ Type, Text string }
	if json.Unmarshal(text, (*string)(c)) == nil {
		return nil
	}
	if err := json.Unmarshal(text, &parts); err != nil {
		return errors.New("content is a text or a list of parts")
	}
	for _, part := range parts {
		if part.Type != "text" {
			return fmt.Errorf("content of type %q: only text is known", part.Type)
		}
		*c += content(part.Text)
	}
	return nil
}

// plain are the messages as the library has them; OpenAI's newer name of "system" is taken, too.
func plain(messages []message) []qwen.Message {
	var all []qwen.Message
	for _, one := range messages {
		if one.Role == "developer" {
			one.Role = "system"
		}
		all = append(all, qwen.Message{
			Role: one.Role, Content: string(one.Content), ToolCalls: one.ToolCalls, ToolCallID: one.ToolCallID,
		})
	}
	return all
}

// A request as both endpoints have it. What is not a field here is a generation option, and the
// library says what is wrong with it.
type request struct {
	Model    string          `json:"model"`
	Messages []message       `json:"messages"`
	Prompt   json.RawMessage `json:"prompt"`
	N        *int            `json:"n"`
	Stream   bool            `json:"stream"`
	Options  struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`

	generation qwen.Generation
}

// notOptions are the keys that are no generation options: the fields above, and what OpenAI's
// clients may say about themselves.
var notOptions = []string{
	"model", "messages", "prompt", "n", "stream", "stream_options",
	"priority", // nobody goes before others by saying so
	"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
	"parallel_tool_calls", // a reply has one call at most
}

func (s *service) read(r *http.Request) (*request, error) {
	var keys map[string]json.RawMessage
	if err := decode(r.Body, &keys); err != nil {
		return nil, err
	}
	text, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	var made request
	if err := json.Unmarshal(text, &made); err != nil {
		return nil, badRequest("", err.Error())
	}
	if err := s.checkModel(made.Model); err != nil {
		return nil, err
	}
	for _, key := range notOptions {
		delete(keys, key)
	}
	made.generation.Extra = map[string]any{}
	for key, value := range keys {
		if key == "tools" && asksForNothing(value) {
			continue // some clients always send a list
		}
		if string(value) != "null" && (s.options[key] || !asksForNothing(value)) {
			made.generation.Extra[key] = value
		}
	}
	if err := asFormat(made.generation.Extra); err != nil {
		return nil, err
	}
	if made.N == nil {
		made.N = qwen.Ptr(1)
	}
	if *made.N < 1 || *made.N > s.limits.choices {
		return nil, badRequest("n", fmt.Sprintf("n is from 1 to %d", s.limits.choices))
	}
	return &made, nil
}

// asksForNothing finds the values with which clients say that they do not use a feature, which is fine
// where the library does not have it either.
func asksForNothing(value json.RawMessage) bool {
	switch strings.Join(strings.Fields(string(value)), "") {
	case "null", "false", "[]", "{}", `"none"`, `{"type":"text"}`:
		return true
	}
	return false
}

// A choice is one reply of those that a request asks for.
type choice struct {
	prompt  qwen.Prompt
	request *qwen.Request
	// The tokens of an echo, if there is one.
	echoed int
	// Nil for all of the reply.
	only *echoOnly
}

// shown is what the client sees of an event.
func (c *choice) shown(event qwen.Event) qwen.Event {
	if c.only == nil {
		return event
	}
	return c.only.cut(event)
}

// An outcome is what a choice has come to. With tools the model thinks first, as some clients like to show,
// and may end with a call in place of a text.
type outcome struct {
	text, thought string
	call          *qwen.ToolCall
}

// A shape is how an endpoint writes its objects.
type shape struct {
	prefix, whole, chunk string
	// A choice's fields in a whole answer and in a chunk.
	full  func(whole outcome) map[string]any
	delta func(text string, first bool) map[string]any
	// Log-probabilities, nil for none; at is the place in the choice's text.
	logprobs func(tokens []qwen.TokenLogprob, at *place) any
}

var chatShape = shape{
	prefix: "chatcmpl-", whole: "chat.completion", chunk: "chat.completion.chunk",
	logprobs: chatLogprobs,
	full: func(whole outcome) map[string]any {
		message := map[string]any{"role": "assistant", "content": whole.text}
		if whole.call != nil {
			message["content"], message["tool_calls"] = nil, []any{whole.call}
		}
		if whole.thought != "" {
			message["reasoning_content"] = whole.thought
		}
		return map[string]any{"message": message}
	},
	delta: func(text string, first bool) map[string]any {
		delta := map[string]any{}
		if first {
			delta["role"] = "assistant"
		}
		if text != "" || first {
			delta["content"] = text
		}
		return map[string]any{"delta": delta}
	},
}

var textShape = shape{
	prefix: "cmpl-", whole: "text_completion", chunk: "text_completion",
	logprobs: textLogprobs,
	full:     func(whole outcome) map[string]any { return map[string]any{"text": whole.text} },
	delta:    func(text string, _ bool) map[string]any { return map[string]any{"text": text} },
}

func (s *service) chat(w http.ResponseWriter, r *http.Request) {
	made, err := s.read(r)
	if err == nil && len(made.Messages) == 0 {
		err = badRequest("messages", "there are no messages")
	}
	if err != nil {
		refuse(w, err)
		return
	}
	var choices []*choice
	for i := range *made.N {
		prompt := qwen.Chat{Messages: plain(made.Messages), Generation: made.nth(i)}
		choices = append(choices, &choice{prompt: prompt})
	}
	s.reply(w, r, made, chatShape, choices)
}

func (s *service) completions(w http.ResponseWriter, r *http.Request) {
	made, err := s.read(r)
	if err != nil {
		refuse(w, err)
		return
	}
	prompts, err := s.prompts(r.Context(), made.Prompt)
	if err == nil && len(prompts)**made.N > s.limits.choices {
		err = badRequest("prompt", fmt.Sprintf("a request asks for at most %d choices", s.limits.choices))
	}
	if err != nil {
		refuse(w, err)
		return
	}
	made.askLogprobs()
	if err := s.checkEchoes(made, prompts); err != nil {
		refuse(w, err)
		return
	}
	none := made.askTokens()
	var choices []*choice
	for _, ids := range prompts {
		for i := range *made.N {
			one := &choice{prompt: qwen.Tokens{IDs: ids, Generation: made.nth(i)}}
			if made.echoes() {
				one.echoed = len(ids)
			}
			if none {
				if one.only, err = s.echoOnly(made, ids); err != nil {
					refuse(w, err)
					return
				}
			}
			choices = append(choices, one)
		}
	}
	s.reply(w, r, made, textShape, choices)
}

// nth are the options of choice i: with a seed, each choice has another.
func (made *request) nth(i int) qwen.Generation {
	text, ok := made.generation.Extra["seed"].(json.RawMessage)
	seed, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		var number float64 // 1.0 is a whole number, too
		if number, err = strconv.ParseFloat(string(text), 64); number == math.Trunc(number) {
			seed = int64(number)
		}
	}
	if !ok || err != nil || i == 0 || seed < 0 {
		return made.generation
	}
	extra := map[string]any{}
	for key, value := range made.generation.Extra {
		extra[key] = value
	}
	extra["seed"] = (seed + int64(i)) & math.MaxInt64
	return qwen.Generation{Extra: extra}
}

// prompts are the token ids of a prompt in one of its four forms: a text, ids, or a list of either.
func (s *service) prompts(ctx context.Context, raw json.RawMessage) ([][]uint32, error) {
	var text string
	var ids []uint32
	var texts []string
	var lists [][]uint32
	switch {
	case json.Unmarshal(raw, &text) == nil:
		texts = []string{text}
	case json.Unmarshal(raw, &texts) == nil:
	case json.Unmarshal(raw, &ids) == nil:
		texts, lists = nil, [][]uint32{ids} // what was no list of texts has left empty ones
	case json.Unmarshal(raw, &lists) == nil:
		texts = nil
	default:
		return nil, badRequest("prompt", "prompt is a text, token ids, or a list of either")
	}
	if len(texts) > s.limits.choices {
		return nil, badRequest("prompt", fmt.Sprintf("a request asks for at most %d choices", s.limits.choices))
	}
	for _, text := range texts {
		ids, err := s.tokens(ctx, func() ([]uint32, error) { return s.tokenizer.Encode(text) })
		if err != nil {
			return nil, err
		}
		lists = append(lists, ids)
	}
	for i := range lists {
		if len(lists[i]) == 0 {
			lists[i] = []uint32{s.vocab.EndOfText} // what begins a text from nothing
		}
	}
	if len(lists) == 0 {
		return nil, badRequest("prompt", "there is no prompt")
	}
	return lists, nil
}

var lastID atomic.Uint64

// reply submits all choices, so that a refusal is one with a status, and answers.
func (s *service) reply(w http.ResponseWriter, r *http.Request, made *request, shape shape, choices []*choice) {
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.time)
	defer cancel()
	for _, one := range choices {
		var err error
		if one.request, err = s.engine.Submit(ctx, one.prompt); err != nil {
			refuse(w, err)
			return
		}
		defer one.request.Close()
	}
	out := &output{
		service: s, shape: shape,
		id:      shape.prefix + strconv.FormatInt(s.started.UnixNano(), 36) + "-" + strconv.FormatUint(lastID.Add(1), 36),
		created: time.Now().Unix(),
	}
	if made.Stream {
		out.stream(w, choices, made.Options.IncludeUsage)
	} else {
		out.whole(w, choices)
	}
}
