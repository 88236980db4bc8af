// The engine: opening, questions about it, and its end. How replies come is in pump.go and
// request.go.

package qwen

// #include "shim.h"
import "C"

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"runtime/cgo"
	"sync"
	"time"
	"unsafe"
)

// An Engine is a loaded model. Any goroutine may use it, several at once.
type Engine struct{ core *core }

// core is the inside of an Engine, which goroutines may hold while the Engine itself is garbage.
type core struct {
	handle *handle
	pump   pump
	log    *logSink
	ending sync.Once
	failed error

	mu sync.Mutex
	// The sessions and requests that are not closed yet; nil once the engine is.
	children map[*handle]struct{}
}

// Open loads the checkpoint in a folder (config.json, safetensors, qwen.tiktoken), and returns when
// the model can be used.
func Open(folder string, opts ...EngineOption) (*Engine, error) {
	config, options, err := engineOptions(opts)
	if err != nil {
		return nil, err
	}
	defer options.close()
	var sink *logSink
	if config.logger != nil {
		sink = &logSink{logger: config.logger}
		if err := sink.install(&options); err != nil {
			return nil, err
		}
	}
	native, err := openNative(folder, options, config.progress)
	if err != nil {
		return nil, err
	}
	inside := &core{
		handle: newHandle("engine", unsafe.Pointer(native), freeEngine),
		log:    sink, children: map[*handle]struct{}{},
	}
	if err := inside.pump.open(); err != nil {
		inside.handle.close()
		return nil, err
	}
	engine := &Engine{inside}
	// Waiting for the engine's end would hold up everybody's cleanups.
	runtime.AddCleanup(engine, func(inside *core) { go inside.close() }, inside)
	return engine, nil
}

func openNative(folder string, options options, progress func(done, total uint64) error) (*C.qwen_engine, error) {
	var native *C.qwen_engine
	load := &loading{progress: progress}
	var user cgo.Handle
	if progress != nil {
		user = cgo.NewHandle(load)
		defer user.Delete()
	}
	path, length := textOf(folder)
	err := call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_go_open(path, length, options.native, C.uintptr_t(user), &native, err)
	})
	if native != nil && (load.panicked != nil || load.exited) {
		C.qwen_engine_free(native)
	}
	return native, load.finish(err)
}

func engineOptions(opts []EngineOption) (engineConfig, options, error) {
	var config engineConfig
	for _, opt := range opts {
		opt(&config)
	}
	made, err := newOptions("engine", config.settings)
	return config, made, err
}

func freeEngine(object unsafe.Pointer) { C.qwen_engine_free((*C.qwen_engine)(object)) }

// A MemoryEstimate is what Open would need.
type MemoryEstimate struct {
	// What it was computed for. With a GPU all bytes are the GPU's, with several those of the
	// fullest.
	Backend string `json:"backend"`
	Device  string `json:"device"`
	// Why not a GPU, if it is none.
	NoGPU          string `json:"no_gpu"`
	WeightBytes    uint64 `json:"weight_bytes"`
	KVCacheBytes   uint64 `json:"kv_cache_bytes"`
	KVCacheTokens  uint64 `json:"kv_cache_tokens"`
	WorkspaceBytes uint64 `json:"workspace_bytes"`
	AvailableBytes uint64 `json:"available_bytes"`
	Fits           bool   `json:"fits"`
	// All that the library says, also what no field has.
	Raw json.RawMessage `json:"-"`
}

// EstimateMemory says what Open would need, and loads no weights.
func EstimateMemory(folder string, opts ...EngineOption) (MemoryEstimate, error) {
	var estimate MemoryEstimate
	_, options, err := engineOptions(opts)
	if err != nil {
		return estimate, err
	}
	defer options.close()
	path, length := textOf(folder)
	estimate.Raw, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_engine_estimate_json(path, length, options.native, buf, err)
	})
	if err != nil {
		return estimate, err
	}
	return estimate, decodeInto(estimate.Raw, &estimate)
}

// An EngineInfo is the model, the backend, sizes and the options in force.
type EngineInfo struct {
	Model struct {
		Path         string `json:"path"`
		NumLayers    int    `json:"num_layers"`
		VocabSize    int    `json:"vocab_size"`
		WeightBytes  uint64 `json:"weight_bytes"`
		WeightFormat string `json:"weight_format"`
	} `json:"model"`
	Backend struct {
		Name string `json:"name"`
	} `json:"backend"`
	NoGPU            string `json:"no_gpu"`
	MaxContextTokens int    `json:"max_context_tokens"`
	KVCacheTokens    int    `json:"kv_cache_tokens"`
	// All that the library says, also what no field has.
	Raw json.RawMessage `json:"-"`
}

// Info describes the engine.
func (e *Engine) Info() (EngineInfo, error) {
	var info EngineInfo
	text, err := e.json(func(engine *C.qwen_engine, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_engine_info_json(engine, buf, err)
	})
	if err != nil {
		return info, err
	}
	info.Raw = text
	return info, decodeInto(text, &info)
}

// Metrics reads the engine's counters and gauges; it never waits for the model.
func (e *Engine) Metrics() (Metrics, error) {
	var metrics Metrics
	text, err := e.json(func(engine *C.qwen_engine, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_engine_metrics_json(engine, buf, err)
	})
	if err != nil {
		return metrics, err
	}
	return metrics, decodeInto(text, &metrics)
}

// A Histogram is a distribution, by what it is of: "time_to_first_token_seconds", for example.
type Histogram struct {
	// Upper bounds, ascending.
	Bounds []float64 `json:"bounds"`
	// How many values each bucket has; the last those above all bounds.
	Counts []uint64 `json:"counts"`
	Count  uint64   `json:"count"`
	Sum    float64  `json:"sum"`
}

// Prometheus tells the metrics as text in Prometheus's exposition format, for a scrape endpoint; its
// content type is "text/plain; version=0.0.4". Where model is not empty, every sample has it as the
// label "model".
func (e *Engine) Prometheus(model string) (string, error) {
	label, length := textOf(model)
	text, err := e.json(func(engine *C.qwen_engine, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_engine_metrics_prometheus(engine, label, length, buf, err)
	})
	return string(text), err
}

// Defaults are the values that generation options have where they are not set. They come from the
// checkpoint; there is no seed among them, for an unset seed is random.
func (e *Engine) Defaults() (Generation, error) {
	var generation Generation
	text, err := e.json(func(engine *C.qwen_engine, buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_engine_generation_json(engine, buf, err)
	})
	if err != nil {
		return generation, err
	}
	return generation, decodeInto(text, &generation)
}

func (e *Engine) json(
	function func(engine *C.qwen_engine, buf **C.qwen_buf, err **C.qwen_error) C.int32_t,
) (text []byte, err error) {
	err = e.core.handle.with(func(object unsafe.Pointer) (err error) {
		text, err = takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
			return function((*C.qwen_engine)(object), buf, err)
		})
		return err
	})
	runtime.KeepAlive(e)
	return text, err
}

// Health is nil while the engine can serve, and the reason otherwise; it never waits for the model.
func (e *Engine) Health() error {
	defer runtime.KeepAlive(e)
	return e.core.handle.with(func(object unsafe.Pointer) error {
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_engine_health((*C.qwen_engine)(object), err)
		})
	})
}

// shutdownSlice is how long Shutdown stays inside C before it looks at its context.
const shutdownSlice = 50 * time.Millisecond

// Shutdown refuses new requests and waits until those accepted are finished, or the context ends;
// then it returns that error, and the draining goes on. Close the engine in either case.
func (e *Engine) Shutdown(ctx context.Context) error {
	defer runtime.KeepAlive(e)
	return e.core.handle.with(func(object unsafe.Pointer) error {
		for {
			err := shutdown(object, C.QWEN_SHUTDOWN_DRAIN, shutdownSlice.Milliseconds())
			if !errors.Is(err, ErrTimeout) {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

func shutdown(object unsafe.Pointer, how C.int32_t, timeoutMS int64) error {
	return call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_engine_shutdown((*C.qwen_engine)(object), how, C.int64_t(timeoutMS), err)
	})
}

// Close ends the engine within one step: its requests end with an error, its sessions and requests
// are closed, and its memory is given back. Again, it does nothing. The error is a log handler's
// panic, if there was one.
func (e *Engine) Close() error {
	defer runtime.KeepAlive(e)
	return e.core.close()
}

func (c *core) close() error {
	c.ending.Do(func() {
		object, err := c.handle.enter()
		if err == nil {
			// An engine that failed has ended already: that is no news here.
			_ = shutdown(object, C.QWEN_SHUTDOWN_CANCEL, -1)
			c.handle.leave()
		}
		c.mu.Lock()
		children := c.children
		c.children = nil
		c.mu.Unlock()
		for child := range children {
			child.close()
		}
		c.pump.close()
		c.handle.close()
		c.failed = c.log.failure()
	})
	return c.failed
}

// adopt has the engine close a child that is still open at its end; false if it has ended.
func (c *core) adopt(child *handle) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.children == nil {
		return false
	}
	c.children[child] = struct{}{}
	return true
}

// dismiss closes a child.
func (c *core) dismiss(child *handle) {
	c.mu.Lock()
	delete(c.children, child)
	c.mu.Unlock()
	child.close()
}
