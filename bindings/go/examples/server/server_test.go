// The server as its clients meet it: over HTTP, against a small model.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

const (
	tinyModel = "../../../../tests/data/tiny/plain-bf16"
	demoModel = "../../../../demo/chat-model"
)

func start(t *testing.T, model, key string, options ...qwen.EngineOption) (*service, string) {
	t.Helper()
	engine, err := qwen.Open(model, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	limits := defaultLimits
	limits.body = 1 << 16
	service, err := newService(engine, "small", key, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.close)
	server := httptest.NewServer(service.handler())
	t.Cleanup(server.Close)
	return service, server.URL
}

func tiny(t *testing.T, options ...qwen.EngineOption) (*service, string) {
	t.Helper()
	return start(t, tinyModel, "", append(options, qwen.WithNumThreads(1), qwen.WithMaxContextTokens(2048), qwen.WithKVCacheTokens(65536))...)
}

// post sends JSON and reads the answer's status and text.
func post(t *testing.T, url, body string) (int, string) {
	t.Helper()
	response, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, response)
}

func read(t *testing.T, response *http.Response) (int, string) {
	t.Helper()
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// A said is what a message, whole or in part, says.
type said struct {
	Role, Content string
	ToolCalls     []qwen.ToolCall `json:"tool_calls"`
}

// A reply has the fields of whole answers and chunks.
type reply struct {
	ID, Object, Model string
	Choices           []struct {
		Index          int
		Text           string
		Message, Delta said
		FinishReason   *string `json:"finish_reason"`
		Logprobs       struct{ Tokens []string }
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	}
	Error *struct{ Message, Type, Param, Code string }
}

func parse(t *testing.T, text string) (made reply) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return made
}

func ask(t *testing.T, url, body string) reply {
	t.Helper()
	status, text := post(t, url, body)
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, text)
	}
	return parse(t, text)
}

// events are the chunks of a streamed answer; the last must be [DONE].
func events(t *testing.T, url, body string) (chunks []reply) {
	t.Helper()
	response, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); kind != "text/event-stream" {
		_, text := read(t, response)
		t.Fatalf("%s: %s", kind, text)
	}
	last := ""
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if last = data; data != "[DONE]" {
				chunks = append(chunks, parse(t, data))
			}
		}
	}
	if last != "[DONE]" {
		t.Fatalf("the stream ends with %q", last)
	}
	return chunks
}

func TestChat(t *testing.T) {
	_, url := start(t, demoModel, "")
	url += "/v1/chat/completions"
	question := `"messages": [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}], "temperature": 0, "repetition_penalty": 1.0, "logprobs": false, "tools": [], "response_format": {"type": "text"}`
	const want = "The capital of France is Paris."
	made := ask(t, url, `{"model": "small", `+question+`}`)
	choice := made.Choices[0]
	if made.Object != "chat.completion" || choice.Message.Content != want || choice.Message.Role != "assistant" ||
		*choice.FinishReason != "stop" || made.Usage.Completion != 7 || made.Usage.Total != made.Usage.Prompt+7 {
		t.Fatalf("%+v", made)
	}
	streamed := events(t, url, `{"stream": true, "stream_options": {"include_usage": true}, `+question+`}`)
	text, reason := "", ""
	for _, chunk := range streamed[:len(streamed)-1] {
		text += chunk.Choices[0].Delta.Content
		if chunk.Choices[0].FinishReason != nil {
			reason = *chunk.Choices[0].FinishReason
		}
	}
	last := streamed[len(streamed)-1]
	if text != want || reason != "stop" || streamed[0].Choices[0].Delta.Role != "assistant" || len(streamed) < 4 ||
		len(last.Choices) != 0 || *last.Usage != *made.Usage || last.Object != "chat.completion.chunk" {
		t.Fatalf("%q %q %+v", text, reason, last)
	}
	made = ask(t, url, `{"stop": "Paris", `+question+`}`)
	if text := made.Choices[0].Message.Content; text != "The capital of France is " {
		t.Fatalf("%q", text)
	}
}

func TestRefusals(t *testing.T) {
	_, url := tiny(t)
	hello := `"messages": [{"role": "user", "content": "hello"}]`
	refusals := []struct {
		path, body  string
		status      int
		param, code string
	}{
		{"/v1/chat/completions", `{`, 400, "", "invalid_value"},
		{"/v1/chat/completions", `{` + hello + `, "model": "other"}`, 404, "model", "model_not_found"},
		{"/v1/chat/completions", `{` + hello + `, "temperature": -1}`, 400, "temperature", "QWEN_E_OPTION"},
		{"/v1/chat/completions", `{` + hello + `, "no_such_option": 1}`, 400, "no_such_option", "QWEN_E_OPTION"},
		{"/v1/chat/completions", `{` + hello + `, "n": 0}`, 400, "n", "invalid_value"},
		{"/v1/chat/completions", `{"messages": []}`, 400, "messages", "invalid_value"},
		{"/v1/chat/completions", `{` + hello + `, "deadline_ms": 1, "max_tokens": 4000, "ignore_eos": true}`, 504, "", "QWEN_E_DEADLINE"},
		{"/tokenize", `{}`, 400, "prompt", "invalid_value"},
		{"/detokenize", `{}`, 400, "tokens", "invalid_value"},
		{"/detokenize", `{"tokens": [4000000000]}`, 400, "tokens", "invalid_value"},
		{"/v1/chat/completions", `{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}`, 400, "", "invalid_value"},
		{"/v1/chat/completions", "{\"messages\": \"\xff\"}", 400, "", "invalid_value"},
		{"/v1/completions", `{"prompt": {}}`, 400, "prompt", "invalid_value"},
		{"/v1/completions", `{"prompt": []}`, 400, "prompt", "invalid_value"},
		{"/v1/completions", `{"prompt": "` + strings.Repeat("x", 5000) + `"}`, 400, "", "QWEN_E_CONTEXT_FULL"},
		{"/v1/completions", `{"prompt": "` + strings.Repeat("x", 1<<17) + `"}`, 413, "", "too_large"},
		{"/v1/completions", `{"prompt": "x", "n": 65}`, 400, "n", "invalid_value"},
		{"/v1/completions", `{"prompt": [` + strings.Repeat(`"x", `, 64) + `"x"]}`, 400, "prompt", "invalid_value"},
		{"/v1/completions", `{"prompt": "x", "max_tokens": -1}`, 400, "max_tokens", "QWEN_E_OPTION"},
		{"/v1/completions", `{"prompt": "x", "logprobs": 21}`, 400, "top_logprobs", "QWEN_E_OPTION"},
		{"/v1/completions", `{"prompt": [` + strings.Repeat("1, ", 999) + `1], "n": 64, "echo": true, "logprobs": 20}`, 400, "logprobs", "invalid_value"},
		{"/v1/chat/completions", `{` + hello + `, "echo": true}`, 400, "echo", "QWEN_E_OPTION"},
	}
	for _, one := range refusals {
		status, text := post(t, url+one.path, one.body)
		made := parse(t, text)
		if status != one.status || made.Error == nil || made.Error.Param != one.param || made.Error.Code != one.code {
			t.Errorf("%.80s: %d %s", one.body, status, text)
		}
	}
	if response, err := http.Get(url + "/v1/completions"); err != nil || response.StatusCode != http.StatusMethodNotAllowed {
		t.Error("GET of a POST:", response.StatusCode, err)
	}
}

func TestAFullQueueIs429(t *testing.T) {
	// Slow enough that none is finished before the last comes.
	service, url := start(t, demoModel, "", qwen.WithMaxBatchSequences(1), qwen.WithMaxQueueRequests(1))
	// One that runs, then one that waits.
	for range 2 {
		request, err := service.engine.Submit(t.Context(), qwen.Chat{
			Messages: []qwen.Message{qwen.User("x")}, Generation: qwen.Generation{MaxTokens: qwen.Ptr(1500), IgnoreEOS: qwen.Ptr(true)},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer request.Close()
		running(t, service, 1)
	}
	response, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"prompt": "x"}`))
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := read(t, response); status != http.StatusTooManyRequests || response.Header.Get("Retry-After") == "" {
		t.Fatal(status, response.Header)
	}
}

func TestTheKey(t *testing.T) {
	_, url := start(t, tinyModel, "secret")
	get := func(path, key string) int {
		request, _ := http.NewRequest("GET", url+path, nil)
		if key != "" {
			request.Header.Set("Authorization", "Bearer "+key)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		status, _ := read(t, response)
		return status
	}
	for _, path := range []string{"/v1/models", "/metrics"} {
		if get(path, "") != 401 || get(path, "wrong") != 401 || get(path, "secret") != 200 {
			t.Error(path)
		}
	}
	if get("/health", "") != 200 || get("/", "") != 200 || get("/nothing", "secret") != 404 {
		t.Error("the open endpoints")
	}
}

func TestModelsMetricsHealth(t *testing.T) {
	service, url := tiny(t)
	ask(t, url+"/v1/completions", `{"prompt": "x", "max_tokens": 5, "ignore_eos": true}`)
	get := func(path string) (int, string) {
		response, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		return read(t, response)
	}
	if _, text := get("/v1/models"); !strings.Contains(text, `"id":"small"`) {
		t.Error(text)
	}
	if status, _ := get("/v1/models/other"); status != 404 {
		t.Error(status)
	}
	if _, text := get("/metrics"); !strings.Contains(text, "# TYPE qwen_generated_tokens_total counter\nqwen_generated_tokens_total 5\n") ||
		!strings.Contains(text, "# TYPE qwen_requests_running gauge\n") {
		t.Error(text)
	}
	if _, text := get("/"); !strings.Contains(text, "<title>libqwen</title>") {
		t.Error(text)
	}
	service.engine.Close()
	if status, _ := get("/health"); status != http.StatusServiceUnavailable {
		t.Error(status)
	}
}

// running waits until so many requests run.
func running(t *testing.T, service *service, wanted uint64) qwen.Metrics {
	t.Helper()
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(time.Millisecond) {
		if metrics, err := service.engine.Metrics(); err != nil || metrics.RequestsRunning == wanted {
			return metrics
		}
	}
	t.Fatalf("never %d requests", wanted)
	return qwen.Metrics{}
}

func TestAClientThatLeavesCancels(t *testing.T) {
	service, url := start(t, demoModel, "")
	for _, stream := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		body := fmt.Sprintf(`{"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1500, "ignore_eos": true, "stream": %v}`, stream)
		request, _ := http.NewRequestWithContext(ctx, "POST", url+"/v1/chat/completions", strings.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		go func() {
			running(t, service, 1)
			cancel()
		}()
		if response, err := http.DefaultClient.Do(request); err == nil {
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		cancel()
		if metrics := running(t, service, 0); metrics.GeneratedTokens > 400 {
			t.Fatalf("%+v", metrics)
		}
	}
	if metrics := running(t, service, 0); metrics.RequestsCancelled != 2 {
		t.Fatalf("%+v", metrics)
	}
}

func TestDraining(t *testing.T) {
	service, _ := tiny(t)
	for _, grace := range []time.Duration{time.Minute, 0} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		url := "http://" + listener.Addr().String()
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- service.serve(ctx, listener, grace) }()
		answered := make(chan string, 1)
		go func() {
			response, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"prompt": "x", "max_tokens": 1900, "ignore_eos": true}`))
			if err != nil {
				answered <- ""
				return
			}
			defer response.Body.Close()
			var text bytes.Buffer
			text.ReadFrom(response.Body)
			answered <- text.String()
		}()
		running(t, service, 1)
		stop()
		err, text := <-served, <-answered
		if complete := strings.Contains(text, `"completion_tokens":1900`); complete != (grace > 0) || (err == nil) != complete {
			t.Fatalf("grace %v: %v, %.200q", grace, err, text)
		}
		running(t, service, 0)
		if _, err := http.Get(url + "/health"); err == nil {
			t.Fatal("it still listens")
		}
	}
}
