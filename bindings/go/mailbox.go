// A mailbox holds a reply's events until its reader takes them. Whoever delivers never waits; what
// the reader is late for comes joined, so it holds no more than the reply.

package qwen

import (
	"context"
	"slices"
	"strings"
	"sync"
)

type mailbox struct {
	// Has an element while there is something to take.
	news chan struct{}

	mu     sync.Mutex
	events []Event
	// How the reply ended, once it has.
	ended bool
	err   error
}

func newMailbox() *mailbox { return &mailbox{news: make(chan struct{}, 1)} }

// put delivers an event.
func (m *mailbox) put(event Event) {
	m.mu.Lock()
	m.events = append(m.events, event)
	m.mu.Unlock()
	m.wake()
}

// end delivers the end; only the first counts.
func (m *mailbox) end(err error) {
	m.mu.Lock()
	if !m.ended {
		m.ended, m.err = true, err
	}
	m.mu.Unlock()
	m.wake()
}

func (m *mailbox) wake() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// empty says whether there is nothing to take, no end either.
func (m *mailbox) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events) == 0 && !m.ended
}

// wait is for those whose events somebody else delivers.
func (m *mailbox) wait(ctx context.Context, _ *mailbox) {
	select {
	case <-m.news:
	case <-ctx.Done():
	}
}

// take waits for the next event, by a function that returns when there may be one. Without one, more
// is false, and err is how the reply ended or why the context did.
func (m *mailbox) take(ctx context.Context, wait func(context.Context, *mailbox)) (event Event, more bool, err error) {
	for {
		if ctx.Err() != nil {
			return Event{}, false, ended(ctx)
		}
		m.mu.Lock()
		if len(m.events) > 0 {
			event = m.next()
			m.mu.Unlock()
			return event, true, nil
		}
		over, why := m.ended, m.err
		m.mu.Unlock()
		if over {
			return Event{}, false, why
		}
		wait(ctx, m)
	}
}

// next takes the first event, with the deltas behind it if it is one.
func (m *mailbox) next() Event {
	run := 1
	if m.events[0].Kind == EventDelta {
		for run < len(m.events) && m.events[run].Kind == EventDelta && m.events[run].Choice == m.events[0].Choice {
			run++
		}
	}
	event := joined(m.events[:run])
	if run == len(m.events) {
		m.events = m.events[:0]
	} else {
		m.events = slices.Delete(m.events, 0, run)
	}
	return event
}

func joined(deltas []Event) Event {
	event := deltas[0]
	if len(deltas) == 1 {
		return event
	}
	var text strings.Builder
	verbatim := true
	for _, delta := range deltas {
		text.WriteString(delta.Text)
		verbatim = verbatim && delta.raw == nil
	}
	if !verbatim {
		event.raw = []byte{}
		for _, delta := range deltas {
			event.raw = append(event.raw, delta.Bytes()...)
		}
	}
	event.Text = text.String()
	event.Tokens, event.Logprobs = slices.Clip(event.Tokens), slices.Clip(event.Logprobs)
	for _, delta := range deltas[1:] {
		event.Tokens = append(event.Tokens, delta.Tokens...)
		event.Logprobs = append(event.Logprobs, delta.Logprobs...)
	}
	return event
}
