// What the tests share: the models they open, and the promise that they leave no C object behind.

package qwen

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

const (
	// Random weights: replies are random bytes, many of them no UTF-8.
	tinyModel = "../../tests/data/tiny/plain-bf16"
	// Small, real, and slow enough to be cancelled in the middle.
	demoModel = "../../demo/chat-model"
	// The real vocabulary of Qwen-1.
	vocabulary = "../../demo/vocabulary"
)

// AtEnd has what examples share and nobody else closes.
var AtEnd []func() error

func TestMain(m *testing.M) {
	for _, needed := range []string{demoModel + "/config.json", vocabulary + "/qwen.tiktoken"} {
		if _, err := os.Stat(needed); err != nil {
			fmt.Fprintln(os.Stderr, "run `make fixtures` first:", err)
			os.Exit(1)
		}
	}
	status := m.Run()
	for _, end := range AtEnd {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	if left := settledHandles(0); left != 0 && status == 0 {
		fmt.Fprintln(os.Stderr, "C objects left behind:", left)
		status = 1
	}
	os.Exit(status)
}

// settledHandles collects garbage until no more than `wanted` C objects are held, or patience ends.
func settledHandles(wanted int64) int64 {
	for range 200 {
		if liveHandles.Load() <= wanted {
			break
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	return liveHandles.Load()
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for start := time.Now(); !holds(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("never: " + what)
		}
	}
}

func openTiny(t testing.TB, opts ...EngineOption) *Engine {
	t.Helper()
	small := []EngineOption{WithNumThreads(1), WithKVCacheTokens(65536), WithMaxContextTokens(2048)}
	return open(t, tinyModel, append(small, opts...)...)
}

func open(t testing.TB, folder string, opts ...EngineOption) *Engine {
	t.Helper()
	engine, err := Open(folder, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, engine.Close()) })
	return engine
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// value is what a call gives that must not fail.
func value[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		must(t, err)
		return value
	}
}

// ask is a question with a reply of exactly so many tokens.
func ask(text string, tokens int) Chat {
	return Chat{Messages: []Message{User(text)}, Generation: exactly(tokens)}
}

func exactly(tokens int) Generation {
	return Generation{MaxTokens: Ptr(tokens), IgnoreEOS: Ptr(true), Seed: Ptr(7)}
}

// idle waits until the engine has nothing to do.
func idle(t *testing.T, engine *Engine) {
	t.Helper()
	eventually(t, "the engine is idle", func() bool {
		metrics := value[Metrics](t)(engine.Metrics())
		return metrics.RequestsRunning == 0 && metrics.RequestsWaiting == 0 && metrics.PagesUsed == 0
	})
}
