// Streams: what comes, how they end, and that an end reaches the engine.

package qwen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

func TestAStreamIsTheReply(t *testing.T) {
	engine := openTiny(t)
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	defer tokenizer.Close()
	whole := value[*Result](t)(engine.Complete(t.Context(), ask("hello", 200)))

	var text string
	var written []byte
	var ids []uint32
	var last Event
	for event, err := range engine.Stream(t.Context(), ask("hello", 200)) {
		must(t, err)
		if !utf8.ValidString(event.Text) {
			t.Fatalf("half a character: %q", event.Text)
		}
		text += event.Text
		written = append(written, event.Bytes()...)
		ids = append(ids, event.Tokens...)
		last = event
	}
	if last.Kind != EventFinished || last.Finish != FinishLength || last.Usage.CompletionTokens != 200 {
		t.Fatalf("the last event: %+v", last)
	}
	if text != whole.Text || !slices.Equal(ids, whole.Tokens) || len(ids) != 200 {
		t.Fatal("the same seed, another reply")
	}
	decoded := value[[]byte](t)(tokenizer.Decode(ids))
	if !bytes.Equal(decoded, written) {
		t.Fatalf("%q was streamed, %q decoded", written, decoded)
	}
	if utf8.Valid(decoded) {
		t.Fatal("a random reply is expected to have bytes that are no UTF-8: the test tests nothing")
	}
	prompt := value[[]uint32](t)(tokenizer.RenderChat([]Message{User("hello")}, 0))
	if last.Usage.PromptTokens != len(prompt) {
		t.Fatalf("%d tokens of prompt, %d rendered", last.Usage.PromptTokens, len(prompt))
	}
	again := value[*Result](t)(engine.Complete(t.Context(), Tokens{IDs: prompt, Generation: exactly(200)}))
	if again.Text != whole.Text {
		t.Fatal("the rendered prompt is not the chat's")
	}
}

func TestLeavingTheLoopCancels(t *testing.T) {
	engine := open(t, demoModel)
	for event, err := range engine.Stream(t.Context(), ask("Tell me a long story.", 1500)) {
		must(t, err)
		if event.Kind == EventDelta {
			break
		}
	}
	idle(t, engine)
	if made := value[Metrics](t)(engine.Metrics()).GeneratedTokens; made > 100 {
		t.Fatalf("%d tokens were made after the end", made)
	}
}

func TestContextsReachTheEngine(t *testing.T) {
	engine := open(t, demoModel)
	reason := errors.New("the user has left")
	ends := map[string]struct {
		make func(started <-chan struct{}) context.Context
		want []error
	}{
		"cancel": {func(started <-chan struct{}) context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() { <-started; cancel(reason) }()
			return ctx
		}, []error{context.Canceled, reason, ErrCancelled}},
		"deadline": {func(<-chan struct{}) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}, []error{context.DeadlineExceeded, ErrCancelled}},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			before := value[Metrics](t)(engine.Metrics()).GeneratedTokens
			started := make(chan struct{})
			begin := sync.OnceFunc(func() { close(started) })
			var last error
			for event, err := range engine.Stream(end.make(started), ask("Tell me a long story.", 1500)) {
				if event.Kind == EventDelta {
					begin()
				}
				last = err
			}
			for _, want := range end.want {
				if !errors.Is(last, want) {
					t.Errorf("%v is not %v", last, want)
				}
			}
			idle(t, engine)
			if made := value[Metrics](t)(engine.Metrics()).GeneratedTokens - before; made > 400 {
				t.Errorf("%d tokens were made", made)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := engine.Complete(gone, ask("x", 1)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestAnEndReachesARequestThatNobodyReads(t *testing.T) {
	engine := open(t, demoModel)
	ctx, cancel := context.WithCancel(t.Context())
	request := value[*Request](t)(engine.Submit(ctx, ask("Tell me a long story.", 1500)))
	defer request.Close()
	cancel()
	idle(t, engine)
	if metrics := value[Metrics](t)(engine.Metrics()); metrics.RequestsCancelled != 1 || metrics.GeneratedTokens > 400 {
		t.Fatalf("%+v", metrics)
	}
}

// A long prompt is computed in many steps: a cancel must not wait for the last of them.
func TestACancelDuringThePromptEndsIt(t *testing.T) {
	const step = 16
	engine := open(t, demoModel, WithPrefillChunkTokens(step))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	long := ask(strings.Repeat("one two three ", 500), 10)
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	defer tokenizer.Close()
	prompt := len(value[[]uint32](t)(tokenizer.RenderChat(long.Messages, 0)))
	for event, err := range engine.Stream(ctx, long) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			break
		}
		if event.Kind == EventStarted {
			cancel()
		}
	}
	idle(t, engine)
	metrics := value[Metrics](t)(engine.Metrics())
	t.Logf("%d of %d tokens were computed, in steps of %d", metrics.ComputedTokens, prompt, step)
	if prompt < 40*step || metrics.ComputedTokens > uint64(prompt)/4 {
		t.Fatalf("%d of %d tokens were computed", metrics.ComputedTokens, prompt)
	}
}

func TestStopKeepsTheReply(t *testing.T) {
	engine := openTiny(t)
	request := value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900)))
	defer request.Close()
	var last Event
	tokens := 0
	for event, err := range request.Events() {
		must(t, err)
		tokens += len(event.Tokens)
		if event.Kind == EventDelta {
			must(t, request.Stop())
		}
		last = event
	}
	if last.Finish != FinishCancelled || tokens == 0 || last.Usage.CompletionTokens != tokens {
		t.Fatalf("%d tokens, then %+v", tokens, last)
	}
	request = value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900)))
	must(t, request.Cancel())
	if _, err := collect(request.Events()); !errors.Is(err, ErrCancelled) || errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	must(t, request.Close())
	must(t, request.Close())
	if err := request.Stop(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// threads counts the process's OS threads.
func threads(t *testing.T) int {
	status := value[[]byte](t)(os.ReadFile("/proc/self/status"))
	_, rest, _ := strings.Cut(string(status), "\nThreads:\t")
	number, _, _ := strings.Cut(rest, "\n")
	return value[int](t)(strconv.Atoi(number))
}

func TestAThousandStreamsNeedFewThreads(t *testing.T) {
	const streams = 1000
	engine := openTiny(t, WithMaxBatchSequences(streams))
	before := threads(t)
	var begun, ended sync.WaitGroup
	begun.Add(streams)
	ended.Add(streams)
	failures := make(chan error, streams)
	for i := range streams {
		go func() {
			defer ended.Done()
			begin := sync.OnceFunc(begun.Done)
			defer begin()
			tokens := 0
			for event, err := range engine.Stream(t.Context(), ask(fmt.Sprint(i), 20)) {
				if err != nil {
					failures <- err
					return
				}
				tokens += len(event.Tokens)
				// Everyone waits in the middle of a stream until all have begun theirs.
				begin()
				begun.Wait()
			}
			if tokens != 20 {
				failures <- fmt.Errorf("%d tokens", tokens)
			}
		}()
	}
	begun.Wait()
	during := threads(t)
	ended.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	t.Logf("%d threads before, %d during %d streams, %d processors", before, during, streams, runtime.GOMAXPROCS(0))
	if during-before > 40 {
		t.Fatalf("%d threads during %d streams, %d before", during, streams, before)
	}
	idle(t, engine)
}

func TestTheQueueRefuses(t *testing.T) {
	// Slow enough that none is finished before the last comes.
	engine := open(t, demoModel, WithMaxBatchSequences(1), WithMaxQueueRequests(1))
	var full error
	for range 10 {
		request, err := engine.Submit(t.Context(), ask("x", 1500))
		if err != nil {
			full = err
			break
		}
		defer request.Close()
	}
	if !errors.Is(full, ErrQueueFull) {
		t.Fatal(full)
	}
	_, err := openTiny(t).Complete(t.Context(), ask(strings.Repeat("x", 5000), 1))
	if !errors.Is(err, ErrContextFull) {
		t.Fatal(err)
	}
}

func TestAReplyThatIsCompleteOutlivesItsEngine(t *testing.T) {
	engine := openTiny(t)
	request := value[*Request](t)(engine.Submit(t.Context(), ask("x", 50)))
	defer request.Close()
	idle(t, engine)
	must(t, engine.Close())
	if result := value[*Result](t)(collect(request.Events())); len(result.Tokens) != 50 || result.Finish != FinishLength {
		t.Fatalf("%+v", result)
	}
}

// A bug of the library's might lose a request's last event: its reader must not wait for ever.
func TestAReaderOfALostRequestEnds(t *testing.T) {
	var pump pump
	must(t, pump.open())
	defer pump.close()
	if _, _, err := newMailbox().take(t.Context(), pump.wait); !errors.Is(err, ErrEnd) {
		t.Fatal(err)
	}
}

func TestAPanicInTheLoopCancelsAndGoesOn(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	loops := map[string]func(){
		"stream": func() {
			for range engine.Stream(t.Context(), ask("x", 1900)) {
				panic("mine")
			}
		},
		"session": func() {
			for range session.Stream(t.Context(), "x", exactly(1900)) {
				panic("mine")
			}
		},
	}
	for name, loop := range loops {
		t.Run(name, func(t *testing.T) {
			func() {
				defer func() {
					if why := recover(); why != "mine" {
						t.Errorf("recovered %v", why)
					}
				}()
				loop()
			}()
			idle(t, engine)
		})
		t.Run(name+" Goexit", func(t *testing.T) {
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				for range session.Stream(t.Context(), "x", exactly(1900)) {
					runtime.Goexit()
				}
			}()
			<-gone
			idle(t, engine)
		})
	}
	if messages := value[[]Message](t)(session.Messages()); len(messages) > 1 {
		t.Fatalf("a broken turn is remembered: %v", messages)
	}
	must(t, session.Append(User("a"), Assistant("b")))
}

func TestLateReadersGetJoinedEvents(t *testing.T) {
	box := newMailbox()
	box.put(Event{Kind: EventStarted})
	box.put(Event{Kind: EventDelta, Text: "a", Tokens: []uint32{1}})
	box.put(Event{Kind: EventDelta, Text: "\uFFFD", Tokens: []uint32{2}, raw: []byte{0xff}})
	box.put(Event{Kind: EventDelta, Text: "b", Tokens: []uint32{3}})
	box.put(Event{Kind: EventFinished, Finish: FinishStop})
	box.end(nil)
	var seen []Event
	for {
		event, more, err := box.take(t.Context(), box.wait)
		must(t, err)
		if !more {
			break
		}
		seen = append(seen, event)
	}
	if len(seen) != 3 || seen[1].Text != "a\uFFFDb" || string(seen[1].Bytes()) != "a\xffb" ||
		!slices.Equal(seen[1].Tokens, []uint32{1, 2, 3}) || seen[2].Finish != FinishStop {
		t.Fatalf("%+v", seen)
	}
}
