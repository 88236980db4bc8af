// Options: what this package needs of them by hand. Each key's own name is in options_gen.go, made
// from the library's description of itself.

package qwen

// #include "shim.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"log/slog"
)

// Ptr is a pointer to a value, for the fields of [Generation], where nil means "not set".
func Ptr[T any](value T) *T { return &value }

// An EngineOption is an option of [Open] and [EstimateMemory].
type EngineOption func(*engineConfig)

type engineConfig struct {
	settings []setting
	logger   *slog.Logger
	progress func(done, total uint64) error
}

type setting struct {
	key   string
	value any
}

// WithLogger sends the engine's log lines to a logger, as far as it is enabled for their levels;
// without it an engine logs nowhere. The handler runs on the engine's own threads: it should be
// quick, and must not call the engine. If it panics, the engine logs no more, and Close says so.
func WithLogger(logger *slog.Logger) EngineOption {
	return func(config *engineConfig) { config.logger = logger }
}

// WithProgress has the loading's progress told in bytes; an error gives up, and is what Open
// returns. A panic gives up as well, and goes on in Open's caller.
func WithProgress(progress func(done, total uint64) error) EngineOption {
	return func(config *engineConfig) { config.progress = progress }
}

// WithEngineOption sets an engine option by its key, also one that this package has no name for.
// The value is a bool, an int, a float64, a string, or anything that is JSON for the library.
func WithEngineOption(key string, value any) EngineOption {
	return func(config *engineConfig) { config.settings = append(config.settings, setting{key, value}) }
}

// A SessionOption is an option of [Engine.NewSession].
type SessionOption func(*sessionConfig)

type sessionConfig struct{ settings []setting }

// WithSessionOption sets a session option by its key.
func WithSessionOption(key string, value any) SessionOption {
	return func(config *sessionConfig) {
		config.settings = append(config.settings, setting{key, value})
	}
}

// Check says what is wrong with the options, as a request with them would.
func (generation Generation) Check() error {
	_, err := generation.Canonical()
	return err
}

// Canonical checks the options and returns them as the library holds them: JSON with its own names
// of the keys.
func (generation Generation) Canonical() (json.RawMessage, error) {
	options, err := generationOptions(generation)
	if err != nil {
		return nil, err
	}
	defer options.close()
	return takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_options_get_json(options.native, buf, err)
	})
}

// An OptionInfo describes one key of the options of a kind.
type OptionInfo struct {
	Key   string `json:"key"`
	Alias string `json:"alias"`
	// "boolean", "integer", "number", "string", "strings" or "integers".
	Type string `json:"type"`
	// The range of numbers; Above instead of Minimum where that number itself is not allowed.
	Minimum *float64 `json:"minimum"`
	Maximum *float64 `json:"maximum"`
	Above   *float64 `json:"above"`
	// The texts that are allowed, if not all are.
	Choices []string `json:"choices"`
	// "checkpoint" stands for what the checkpoint's generation_config.json says.
	Default any    `json:"default"`
	About   string `json:"about"`
}

// DescribeOptions lists the loaded library's options of a kind: "engine", "generation" or "session".
func DescribeOptions(kind string) ([]OptionInfo, error) {
	name, length := textOf(kind)
	text, err := takeBytes(func(buf **C.qwen_buf, err **C.qwen_error) C.int32_t {
		return C.qwen_options_describe_json(name, length, buf, err)
	})
	if err != nil {
		return nil, err
	}
	var described struct{ Options []OptionInfo }
	return described.Options, decodeInto(text, &described)
}

// options are the library's, for the time of one call; native is nil where nothing is set.
type options struct{ native *C.qwen_options }

func newOptions(kind string, settings []setting) (options, error) {
	var made options
	if abiError != nil {
		return made, abiError
	}
	name, length := textOf(kind)
	err := call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_options_new(name, length, &made.native, err)
	})
	for _, one := range settings {
		if err == nil {
			err = made.set(one.key, one.value)
		}
	}
	if err != nil {
		made.close()
	}
	return made, err
}

func generationOptions(generations ...Generation) (options, error) {
	made, err := newOptions("generation", nil)
	for _, generation := range generations {
		if err == nil {
			err = made.add(generation)
		}
	}
	if err != nil {
		made.close()
	}
	return made, err
}

func (o *options) close() {
	C.qwen_options_free(o.native)
	o.native = nil
}

func (o *options) add(generation Generation) error {
	for _, text := range generation.Stop {
		if err := checkText("stop", text); err != nil {
			return err
		}
	}
	text, err := json.Marshal(generation)
	if err != nil {
		// NaN, infinity, or what is no JSON in an option of any type.
		return &Error{Code: ErrOption, Message: "generation options: " + err.Error(), cause: []error{err}}
	}
	if string(text) != "{}" {
		err = o.merge(string(text))
	}
	for key, value := range generation.Extra {
		if err == nil {
			err = o.set(key, value)
		}
	}
	return err
}

func (o *options) set(key string, value any) error {
	name, length := textOf(key)
	switch value := value.(type) {
	case bool:
		number := 0
		if value {
			number = 1
		}
		return o.set(key, number)
	case int:
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_options_set_i64(o.native, name, length, C.int64_t(value), err)
		})
	case float64:
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_options_set_f64(o.native, name, length, C.double(value), err)
		})
	case string:
		text, size := textOf(value)
		return call(func(err **C.qwen_error) C.int32_t {
			return C.qwen_options_set_str(o.native, name, length, text, size, err)
		})
	}
	text, err := json.Marshal(map[string]any{key: value})
	if err != nil {
		return &Error{Code: ErrOption, Message: fmt.Sprintf("%s: %v", key, err)}
	}
	return o.merge(string(text))
}

func (o *options) merge(text string) error {
	data, length := textOf(text)
	return call(func(err **C.qwen_error) C.int32_t {
		return C.qwen_options_merge_json(o.native, data, length, err)
	})
}
