// What OpenAI's older API for texts has, and the library has otherwise: a reply of no tokens, a number
// where the library takes a switch, and a shortest reply of its own.

package main

import (
	"encoding/json"
	"fmt"
	"strconv"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// defaultTokens is the length of a text that nobody gave one.
const defaultTokens = 16

// askLogprobs makes the number of likeliest tokens, which texts ask for, the library's two options.
func (made *request) askLogprobs() {
	raw, _ := made.generation.Extra["logprobs"].(json.RawMessage)
	if count, err := strconv.Atoi(string(raw)); err == nil {
		made.generation.Extra["logprobs"] = true
		made.generation.Extra["top_logprobs"] = count
	}
}

// askTokens sets how long the reply is at most, and says whether no token of it is wanted: the library
// makes one then, which nobody sees.
func (made *request) askTokens() (none bool) {
	extra, set := made.generation.Extra, false
	for _, key := range []string{"max_tokens", "max_completion_tokens"} {
		value, given := extra[key].(json.RawMessage)
		if set = set || given; string(value) == "0" {
			extra[key], none = 1, true
		}
	}
	if !set {
		extra["max_tokens"] = defaultTokens
	}
	return none
}

// An echoOnly is what a reply of no tokens has: the prompt, where its echo is wanted, and nothing else.
type echoOnly struct {
	tokens int
	bytes  int
}

// echoes says whether the prompt comes before the reply.
func (made *request) echoes() bool {
	wanted, _ := made.generation.Extra["echo"].(json.RawMessage)
	return string(wanted) == "true"
}

// checkEchoes bounds the memory for the log-probabilities of echoes. Unlike a reply's, they are all there
// as soon as a prompt is computed, however long it is.
func (s *service) checkEchoes(made *request, prompts [][]uint32) error {
	extra := made.generation.Extra
	if wanted, _ := json.Marshal(extra["logprobs"]); !made.echoes() || string(wanted) != "true" {
		return nil
	}
	text, _ := json.Marshal(extra["top_logprobs"])
	// The library says what is wrong with a number that is none.
	top, _ := strconv.ParseFloat(string(text), 64)
	tokens := 0
	for _, ids := range prompts {
		tokens += len(ids) * *made.N
	}
	if count := float64(tokens) * (1 + top); count > float64(s.limits.logprobs) {
		return badRequest("logprobs", fmt.Sprintf("the echoes have %.0f log-probabilities, and a request at most %d", count, s.limits.logprobs))
	}
	return nil
}

func (s *service) echoOnly(made *request, ids []uint32) (*echoOnly, error) {
	if !made.echoes() {
		return &echoOnly{}, nil
	}
	text, err := s.tokenizer.Decode(ids, qwen.DecodeLossyText)
	return &echoOnly{tokens: len(ids), bytes: len(text)}, err
}

// cut takes away what is the reply's. The text of an echo is whole: what comes behind it is known by
// its place.
func (o *echoOnly) cut(event qwen.Event) qwen.Event {
	event.Text = event.Text[:min(len(event.Text), o.bytes)]
	event.Logprobs = event.Logprobs[:min(len(event.Logprobs), o.tokens)]
	o.bytes -= len(event.Text)
	o.tokens -= len(event.Logprobs)
	if event.Kind == qwen.EventFinished {
		event.Finish = qwen.FinishLength
		event.Usage.CompletionTokens = 0
	}
	return event
}
