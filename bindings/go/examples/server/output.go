// What goes back: an answer as a whole, or its chunks as server-sent events.

package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// An output is one answer.
type output struct {
	*service
	shape   shape
	id      string
	created int64
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

func (u *usage) add(counted qwen.Usage) {
	u.Prompt += counted.PromptTokens
	u.Completion += counted.CompletionTokens
	u.Total = u.Prompt + u.Completion
}

func (o *output) object(kind string, choices []any) map[string]any {
	return map[string]any{"id": o.id, "object": kind, "created": o.created, "model": o.name, "choices": choices}
}

// choiceObject is a choice with the endpoint's own fields; reason is nil while it goes on.
func choiceObject(index int, own map[string]any, logprobs, reason any) map[string]any {
	object := map[string]any{"index": index, "logprobs": logprobs, "finish_reason": reason}
	maps.Copy(object, own)
	return object
}

func (o *output) whole(w http.ResponseWriter, choices []*choice) {
	var counted usage
	var objects []any
	for i, one := range choices {
		var text, thought strings.Builder
		var call *qwen.ToolCall
		var last qwen.Event
		var tokens []qwen.TokenLogprob
		for event, err := range one.request.Events() {
			if err != nil {
				refuse(w, err)
				return
			}
			event = one.shown(event)
			switch event.Kind {
			case qwen.EventThought:
				thought.WriteString(event.Text)
			case qwen.EventToolDelta:
			case qwen.EventToolCall:
				call = event.ToolCall
			default:
				text.WriteString(event.Text)
			}
			tokens = append(tokens, event.Logprobs...)
			last = event
		}
		counted.add(last.Usage)
		logprobs := o.shape.logprobs(tokens, o.beginning(one))
		objects = append(objects, choiceObject(i, o.shape.full(outcome{text.String(), thought.String(), call}), logprobs, last.Finish.String()))
	}
	object := o.object(o.shape.whole, objects)
	object["usage"] = counted
	answer(w, http.StatusOK, object)
}

// A calledAt is a call in a chunk, with its index among the reply's calls, of which there is one.
type calledAt struct {
	index int
	call  qwen.ToolCall
}

// MarshalJSON writes the call with the index beside its fields.
func (c calledAt) MarshalJSON() ([]byte, error) {
	text, err := json.Marshal(c.call)
	fields := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		return nil, err
	}
	fields["index"] = c.index
	return json.Marshal(fields)
}

// A part is an event of one of several choices.
type part struct {
	index int
	event qwen.Event
	err   error
}

// parts merges the choices' events. When done is closed, nobody takes them any more.
func parts(choices []*choice, done <-chan struct{}) <-chan part {
	merged := make(chan part)
	var all sync.WaitGroup
	for i, one := range choices {
		all.Add(1)
		go func() {
			defer all.Done()
			for event, err := range one.request.Events() {
				select {
				case merged <- part{i, event, err}:
				case <-done:
					return
				}
			}
		}()
	}
	go func() {
		all.Wait()
		close(merged)
	}()
	return merged
}

func (o *output) stream(w http.ResponseWriter, choices []*choice, includeUsage bool) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("X-Accel-Buffering", "no")
	control := http.NewResponseController(w)
	// The connection's next answer has no deadline of this one's.
	defer control.SetWriteDeadline(time.Time{})
	send := func(value any) bool {
		text, err := json.Marshal(value)
		if err != nil {
			return false
		}
		return o.write(w, control, string(text))
	}
	chunk := func(index int, text string, first bool, logprobs, reason any) bool {
		own := o.shape.delta(text, first)
		return send(o.object(o.shape.chunk, []any{choiceObject(index, own, logprobs, reason)}))
	}
	delta := func(index int, own map[string]any, logprobs any) bool {
		object := choiceObject(index, map[string]any{"delta": own}, logprobs, nil)
		return send(o.object(o.shape.chunk, []any{object}))
	}
	places := make([]*place, len(choices))
	for i, one := range choices {
		places[i] = o.beginning(one)
		if !chunk(i, "", true, nil, nil) {
			return
		}
	}
	done := make(chan struct{})
	defer close(done)
	var counted usage
	for part := range parts(choices, done) {
		if part.err != nil {
			send(map[string]any{"error": asAPIError(part.err)})
			return
		}
		sent, event := true, choices[part.index].shown(part.event)
		logprobs := o.shape.logprobs(event.Logprobs, places[part.index])
		switch {
		case event.Kind == qwen.EventThought:
			sent = delta(part.index, map[string]any{"reasoning_content": event.Text}, logprobs)
		case event.Kind == qwen.EventToolDelta: // whole, when they are complete and sound
		case event.Kind == qwen.EventToolCall:
			sent = delta(part.index, map[string]any{"tool_calls": []any{calledAt{0, *event.ToolCall}}}, logprobs)
		case event.Text != "" || len(event.Logprobs) > 0:
			sent = chunk(part.index, event.Text, false, logprobs, nil)
		}
		if event.Kind == qwen.EventFinished {
			counted.add(event.Usage)
			sent = sent && chunk(part.index, "", false, nil, event.Finish.String())
		}
		if !sent {
			return
		}
	}
	if includeUsage {
		object := o.object(o.shape.chunk, []any{})
		object["usage"] = counted
		send(object)
	}
	o.write(w, control, "[DONE]")
}

// write sends one server-sent event; a client that does not take it in time is gone.
func (o *output) write(w http.ResponseWriter, control *http.ResponseController, data string) bool {
	// Not every connection has deadlines (one of a test may not): then there is none.
	_ = control.SetWriteDeadline(time.Now().Add(o.limits.write))
	if _, err := w.Write([]byte("data: " + data + "\n\n")); err != nil {
		return false
	}
	return control.Flush() == nil
}
