// The engine: opening it, what it says of itself, and every order of ends.

package qwen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestTheLibraryIsTheOneForThisPackage(t *testing.T) {
	if abiError != nil || ABIVersion() != abiVersion {
		t.Fatal(abiError)
	}
	err := checkABI(abiVersion + 1)
	var why *Error
	if !errors.Is(err, ErrABIMismatch) || !errors.As(err, &why) || !json.Valid(why.Detail) {
		t.Fatal(err)
	}
	build := value[BuildInfo](t)(Build())
	if build.ABIVersion != abiVersion || build.Version != Version() || build.Target == "" {
		t.Fatalf("%+v", build)
	}
	if name := Code(12345).String(); name != "QWEN_E_UNKNOWN" || ErrUTF8.String() != "QWEN_E_UTF8" {
		t.Fatal(name)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	_, err := Open("/no/such/folder")
	var why *Error
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrIO) || !errors.As(err, &why) {
		t.Fatal(err)
	}
	var detail struct{ Path string }
	must(t, json.Unmarshal(why.Detail, &detail))
	if !strings.HasPrefix(detail.Path, "/no/such/folder") {
		t.Fatalf("%s", why.Detail)
	}
	if _, err := OpenTokenizer("/no/such/folder"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	refused := map[string]EngineOption{
		"no such key": WithEngineOption("no_such_key", 1), "a wrong type": WithEngineOption("split", 1.5),
		"out of range": WithNumThreads(-1), "no JSON": WithEngineOption("split", make(chan int)),
	}
	for name, option := range refused {
		if _, err := Open(tinyModel, option); !errors.Is(err, ErrOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTextThatIsNoUTF8IsRefused(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	bad := "ab\xff"
	stop := exactly(1)
	stop.Stop = []string{bad}
	calls := map[string]func() error{
		"chat":    func() error { _, err := engine.Complete(t.Context(), ask(bad, 1)); return err },
		"stop":    func() error { return stop.Check() },
		"send":    func() error { _, err := session.Send(t.Context(), bad); return err },
		"append":  func() error { return session.Append(User(bad), Assistant("b")) },
		"system":  func() error { return session.SetSystem(bad) },
		"session": func() error { _, err := engine.NewSession(WithSystem(bad)); return err },
	}
	for name, call := range calls {
		var why *Error
		err := call()
		if !errors.Is(err, ErrUTF8) || !errors.As(err, &why) || !strings.Contains(string(why.Detail), "2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatAnEngineSaysOfItself(t *testing.T) {
	estimate := value[MemoryEstimate](t)(EstimateMemory(tinyModel, WithKVCacheTokens(256)))
	engine := openTiny(t, WithKVCacheTokens(256))
	info := value[EngineInfo](t)(engine.Info())
	if !estimate.Fits || estimate.WeightBytes != info.Model.WeightBytes || estimate.KVCacheTokens != 256 {
		t.Fatalf("%+v", estimate)
	}
	if info.Model.VocabSize != 293 || info.Backend.Name == "" || info.MaxContextTokens != 256 || !json.Valid(info.Raw) {
		t.Fatalf("%+v", info)
	}
	value[*Result](t)(engine.Complete(t.Context(), ask("x", 10)))
	idle(t, engine)
	if metrics := value[Metrics](t)(engine.Metrics()); metrics.GeneratedTokens != 10 || metrics.RequestsFinished != 1 {
		t.Fatalf("%+v", metrics)
	}
	defaults := value[Generation](t)(engine.Defaults())
	if *defaults.MaxTokens != 512 || *defaults.TopP != 0.8 || defaults.Seed != nil || defaults.Check() != nil {
		t.Fatalf("%+v", defaults)
	}
	must(t, engine.Health())
}

func TestOptionsAreTheLibrarys(t *testing.T) {
	all := Generation{MaxTokens: Ptr(3), Temperature: Ptr(0.5), Stop: []string{"<&>", "é"}, StopTokenIDs: []int{1}, IgnoreEOS: Ptr(true), Extra: map[string]any{"top_k": 4, "min_p": 0.25}}
	text := value[json.RawMessage](t)(all.Canonical())
	want := `{"max_tokens":3,"temperature":0.5,"top_k":4,"min_p":0.25,"stop":["<&>","é"],"stop_token_ids":[1],"ignore_eos":true}`
	var got, wanted any
	must(t, json.Unmarshal(text, &got))
	must(t, json.Unmarshal([]byte(want), &wanted))
	gotText, _ := json.Marshal(got)
	if wantedText, _ := json.Marshal(wanted); !bytes.Equal(gotText, wantedText) {
		t.Fatalf("%s", text)
	}
	if err := (Generation{Temperature: Ptr(-1.0)}).Check(); !errors.Is(err, ErrOption) {
		t.Fatal(err)
	}
	described := value[[]OptionInfo](t)(DescribeOptions("generation"))
	if described[0].Key != "max_tokens" || *described[0].Minimum != 1 {
		t.Fatalf("%+v", described[0])
	}
	if _, err := DescribeOptions("nothing"); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
}

func TestProgressIsToldAndMayGiveUp(t *testing.T) {
	var done, total uint64
	open(t, demoModel, WithProgress(func(d, all uint64) error { done, total = d, all; return nil }))
	if done == 0 || done != total {
		t.Fatalf("%d of %d bytes", done, total)
	}
	mine := errors.New("mine")
	_, err := Open(demoModel, WithProgress(func(uint64, uint64) error { return mine }))
	if !errors.Is(err, mine) || !errors.Is(err, ErrCancelled) {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if why := recover(); why != "mine" {
				t.Errorf("recovered %v", why)
			}
		}()
		_, _ = Open(demoModel, WithProgress(func(uint64, uint64) error { panic("mine") }))
	}()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = Open(demoModel, WithProgress(func(uint64, uint64) error { runtime.Goexit(); return nil }))
		t.Error("Open came back from a Goexit")
	}()
	<-gone
}

// brokenHandler is a log handler with a bug.
type brokenHandler struct{ slog.Handler }

func (brokenHandler) Handle(context.Context, slog.Record) error { panic("a bug") }

func TestLinesGoToTheLogger(t *testing.T) {
	var lines bytes.Buffer
	engine := openTiny(t, WithLogger(slog.New(slog.NewTextHandler(&lines, nil))))
	value[*Result](t)(engine.Complete(t.Context(), ask("x", 1)))
	must(t, engine.Close())
	text := lines.String()
	if !strings.Contains(text, "level=INFO") || !strings.Contains(text, "target=") || strings.Contains(text, "level=DEBUG") {
		t.Fatal(text)
	}
	// The library need not make lines that nobody wants.
	warnings := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if level := (&logSink{logger: warnings}).level(); level != logWarn {
		t.Fatal(level)
	}
	lines.Reset()
	debug := &slog.HandlerOptions{Level: slog.LevelDebug}
	engine = openTiny(t, WithLogger(slog.New(slog.NewTextHandler(&lines, debug))))
	value[*Result](t)(engine.Complete(t.Context(), ask("x", 1)))
	must(t, engine.Close())
	if !strings.Contains(lines.String(), "level=DEBUG") {
		t.Fatal(lines.String())
	}
	broken := slog.New(brokenHandler{slog.NewTextHandler(&lines, nil)})
	engine, err := Open(tinyModel, WithLogger(broken))
	must(t, err)
	if err := engine.Close(); err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Fatal(err)
	}
}

func TestEveryOrderOfEnds(t *testing.T) {
	type thing interface{ Close() error }
	for seed := range 24 {
		engine := openTiny(t)
		tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
		things := []thing{
			engine, tokenizer, value[*Detokenizer](t)(tokenizer.NewDetokenizer()),
			value[*Session](t)(engine.NewSession()), value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900))),
		}
		for i := len(things) - 1; i > 0; i-- {
			j := seed % (i + 1)
			things[i], things[j] = things[j], things[i]
			seed += seed / 3
		}
		for range 2 {
			for _, one := range things {
				must(t, one.Close())
			}
		}
	}
	if left := settledHandles(0); left != 0 {
		t.Fatalf("%d C objects are left", left)
	}
}

func TestAfterCloseEverythingIsClosed(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	request := value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900)))
	must(t, engine.Close())
	calls := map[string]error{
		"health": engine.Health(), "shutdown": engine.Shutdown(t.Context()), "stop": session.Stop(), "request": request.Stop(),
	}
	_, calls["info"] = engine.Info()
	_, calls["complete"] = engine.Complete(t.Context(), ask("x", 1))
	_, calls["session"] = engine.NewSession()
	_, calls["send"] = session.Send(t.Context(), "x")
	_, calls["tokenizer"] = engine.Tokenizer()
	for name, err := range calls {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := collect(request.Events()); err == nil {
		t.Error("a request of a closed engine has ended well")
	}
	if ids, err := tokenizer.Encode("still here"); err != nil || len(ids) == 0 {
		t.Error("a tokenizer outlives its engine:", err)
	}
	must(t, tokenizer.Close())
	if _, err := tokenizer.Encode("x"); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCloseDuringStreams(t *testing.T) {
	for range 5 {
		engine := openTiny(t)
		session := value[*Session](t)(engine.NewSession())
		var busy, streams sync.WaitGroup
		busy.Add(9)
		follow := func(events func(func(Event, error) bool)) {
			defer streams.Done()
			begin := sync.OnceFunc(busy.Done)
			var last error
			for _, err := range events {
				begin()
				last = err
			}
			if !errors.Is(last, ErrCancelled) && !errors.Is(last, ErrClosed) {
				t.Errorf("the stream ended with %v", last)
			}
		}
		streams.Add(9)
		for range 8 {
			go follow(engine.Stream(t.Context(), ask("x", 1900)))
		}
		go follow(session.Stream(t.Context(), "x", exactly(1900)))
		busy.Wait()
		var closers sync.WaitGroup
		for range 4 {
			closers.Add(1)
			go func() { defer closers.Done(); must(t, engine.Close()) }()
		}
		closers.Wait()
		streams.Wait()
	}
	if left := settledHandles(0); left != 0 {
		t.Fatalf("%d C objects are left", left)
	}
}

func TestWhatIsForgottenIsCollected(t *testing.T) {
	engine := openTiny(t)
	held := liveHandles.Load()
	func() {
		value[*Session](t)(engine.NewSession())
		value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900)))
	}()
	if left := settledHandles(held); left != held {
		t.Fatalf("%d C objects are left, of a session and a request", left-held)
	}
	idle(t, engine)
	must(t, engine.Close())
	func() {
		engine, err := Open(tinyModel, WithNumThreads(1), WithMaxContextTokens(2048), WithKVCacheTokens(8192))
		must(t, err)
		tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
		value[*Detokenizer](t)(tokenizer.NewDetokenizer())
		value[*Session](t)(engine.NewSession())
		value[*Request](t)(engine.Submit(t.Context(), ask("x", 1900)))
	}()
	if left := settledHandles(0); left != 0 {
		t.Fatalf("%d C objects are left", left)
	}
}

func TestShutdownDrains(t *testing.T) {
	engine := openTiny(t)
	request := value[*Request](t)(engine.Submit(t.Context(), ask("x", 500)))
	defer request.Close()
	must(t, engine.Shutdown(t.Context()))
	if result := value[*Result](t)(collect(request.Events())); len(result.Tokens) != 500 {
		t.Fatalf("%d tokens were drained", len(result.Tokens))
	}
	if err := engine.Health(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	slow := open(t, demoModel)
	request = value[*Request](t)(slow.Submit(t.Context(), ask("Tell me a long story.", 1500)))
	defer request.Close()
	hurry, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := slow.Shutdown(hurry); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// Everything at once, and the end in the middle of it: for the race detector, and for crashes.
func TestASoakThatEndsInTheMiddle(t *testing.T) {
	engine := openTiny(t, WithMaxQueueRequests(8))
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	defer tokenizer.Close()
	mine := errors.New("mine")
	work := []func(ctx context.Context, i int) error{
		func(ctx context.Context, i int) error { _, err := engine.Complete(ctx, ask("x", i%40+1)); return err },
		func(ctx context.Context, i int) error {
			for _, err := range engine.Stream(ctx, ask("x", 1900)) {
				if i--; i%7 == 0 {
					return err
				}
			}
			return nil
		},
		func(ctx context.Context, i int) error {
			hurry, cancel := context.WithTimeoutCause(ctx, time.Duration(i%3)*time.Millisecond, mine)
			defer cancel()
			_, err := engine.Complete(hurry, ask("x", 1900))
			return err
		},
		func(ctx context.Context, i int) error {
			request, err := engine.Submit(ctx, ask("x", 1900))
			if err == nil {
				go request.Stop()
				go request.Close()
				_, err = collect(request.Events())
			}
			return err
		},
		func(ctx context.Context, i int) error {
			session, err := engine.NewSession()
			if err == nil {
				go session.Cancel()
				_, err = session.Send(ctx, "x", exactly(i%40+1))
				session.Close()
			}
			return err
		},
		func(context.Context, int) error { _, err := tokenizer.Encode("some text"); return err },
		func(context.Context, int) error { _, err := engine.Metrics(); return err },
	}
	var done atomic.Int64
	var all sync.WaitGroup
	for worker := range 24 {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := worker; ; i++ {
				err := work[i%len(work)](t.Context(), i)
				if errors.Is(engine.Health(), ErrClosed) {
					return
				}
				done.Add(1)
				// A request that is closed beside its reader says so.
				expected := errors.Is(err, ErrCancelled) || errors.Is(err, ErrQueueFull) || errors.Is(err, ErrClosed)
				if err != nil && !expected {
					t.Error(err)
					return
				}
			}
		}()
	}
	time.Sleep(time.Second)
	must(t, engine.Close())
	all.Wait()
	if t.Logf("%d calls", done.Load()); done.Load() < 20 {
		t.Fatal("it was no soak")
	}
}
