// The service: its endpoints, what they all share (key, limits, errors), and the small ones.

package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// limits bound what one request may cost, and how many there are at once.
type limits struct {
	body     int64
	time     time.Duration
	write    time.Duration
	choices  int
	requests int
	// Log-probabilities of the tokens of all echoes, which are kept until they are sent.
	logprobs int
}

var defaultLimits = limits{
	body: 8 << 20, time: 10 * time.Minute, write: 30 * time.Second, choices: 64, requests: 2048,
	logprobs: 1 << 20,
}

type service struct {
	engine    *qwen.Engine
	tokenizer *qwen.Tokenizer
	vocab     qwen.TokenizerInfo
	// The keys of generation options that the library has.
	options  map[string]bool
	name     string
	key      string
	limits   limits
	started  time.Time
	draining atomic.Bool
	// Each has an element for every one that there is: requests, and calls of the tokenizer.
	requests, tokenizing chan struct{}
	contentPolicy        string
}

func newService(engine *qwen.Engine, name, key string, limits limits) (*service, error) {
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		return nil, err
	}
	vocab, err := tokenizer.Info()
	if err != nil {
		return nil, err
	}
	described, err := qwen.DescribeOptions("generation")
	if err != nil {
		return nil, err
	}
	options := map[string]bool{}
	for _, one := range described {
		options[one.Key] = true
		options[one.Alias] = true
	}
	return &service{
		engine: engine, tokenizer: tokenizer, vocab: vocab, options: options,
		name: name, key: key, limits: limits, started: time.Now(),
		requests:      make(chan struct{}, limits.requests),
		tokenizing:    make(chan struct{}, runtime.GOMAXPROCS(0)),
		contentPolicy: contentPolicy(page),
	}, nil
}

func (s *service) close() { s.tokenizer.Close() }

func (s *service) handler() http.Handler {
	closed := http.NewServeMux()
	closed.HandleFunc("POST /v1/chat/completions", s.counted(s.chat))
	closed.HandleFunc("POST /v1/completions", s.counted(s.completions))
	closed.HandleFunc("GET /v1/models", s.models)
	closed.HandleFunc("GET /v1/models/{name...}", s.model)
	closed.HandleFunc("POST /tokenize", s.counted(s.tokenize))
	closed.HandleFunc("POST /detokenize", s.counted(s.detokenize))
	closed.HandleFunc("GET /tokenizer_info", s.tokenizerInfo)
	closed.HandleFunc("GET /metrics", s.metrics)
	open := http.NewServeMux()
	open.HandleFunc("GET /health", s.health)
	open.HandleFunc("GET /{$}", s.page)
	open.Handle("/", s.withKey(s.notFromElsewhere(closed)))
	return open
}

// counted refuses a request that is one too many: each holds memory for its body and its answer.
func (s *service) counted(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.requests <- struct{}{}:
			defer func() { <-s.requests }()
			next(w, r)
		default:
			refuse(w, &apiError{status: http.StatusTooManyRequests, Message: fmt.Sprintf("%d requests are served at once", s.limits.requests), Type: "rate_limit_error", Code: "too_many_requests"})
		}
	}
}

// withKey asks for the key, if there is one. Hashes of equal length are compared, so that the time
// it takes says nothing of the key.
func (s *service) withKey(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.key))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		have := sha256.Sum256([]byte(key))
		if s.key != "" && (!strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(have[:], want[:]) != 1) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, &apiError{status: http.StatusUnauthorized, Message: "the API key is missing or wrong", Type: "authentication_error", Code: "invalid_api_key"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, s.limits.body)
		next.ServeHTTP(w, r)
	})
}

// notFromElsewhere refuses what a page of another site has its visitor's browser send. Without a key
// nothing else tells such a request from the visitor's own. A browser names the page's origin, and does
// not send JSON to another site unless that site allows it, which this one never does.
func (s *service) notFromElsewhere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if _, host, _ := strings.Cut(origin, "://"); s.key == "" && origin != "" && !strings.EqualFold(host, r.Host) {
			refuse(w, &apiError{status: http.StatusForbidden, Message: fmt.Sprintf("a page of %s may not use a server without an API key", origin), Type: "permission_error", Code: "foreign_origin"})
			return
		}
		if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method == http.MethodPost && kind != "application/json" {
			refuse(w, &apiError{status: http.StatusUnsupportedMediaType, Message: "a request's Content-Type is application/json", Type: "invalid_request_error", Code: "unsupported_media_type"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// An apiError is an error in OpenAI's form.
type apiError struct {
	status  int
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   string `json:"param,omitempty"`
	Code    string `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

func badRequest(param, message string) *apiError {
	return &apiError{status: http.StatusBadRequest, Message: message, Type: "invalid_request_error", Param: param, Code: "invalid_value"}
}

// asAPIError finds the HTTP status of an error of the library.
func asAPIError(err error) *apiError {
	var known *apiError
	if errors.As(err, &known) {
		return known
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &apiError{status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("a request has at most %d bytes", tooLarge.Limit), Type: "invalid_request_error", Code: "too_large"}
	}
	var failure *qwen.Error
	if !errors.As(err, &failure) {
		return &apiError{status: http.StatusInternalServerError, Message: err.Error(), Type: "server_error", Code: "internal"}
	}
	found := &apiError{status: http.StatusInternalServerError, Message: failure.Message, Type: "server_error", Code: failure.Code.String()}
	switch {
	case errors.Is(err, qwen.ErrQueueFull):
		found.status, found.Type = http.StatusTooManyRequests, "rate_limit_error"
	case errors.Is(err, qwen.ErrTimeout): // it has waited in the queue for as long as it wanted
		found.status, found.Type = http.StatusServiceUnavailable, "rate_limit_error"
	case errors.Is(err, qwen.ErrDeadline):
		found.status, found.Type = http.StatusGatewayTimeout, "timeout_error"
	case errors.Is(err, qwen.ErrContextFull), failure.Code < qwen.ErrClosed:
		found.status, found.Type = http.StatusBadRequest, "invalid_request_error"
	case errors.Is(err, qwen.ErrClosed), errors.Is(err, qwen.ErrEngineFailed):
		found.status = http.StatusServiceUnavailable
	case errors.Is(err, qwen.ErrCancelled):
		found.status, found.Type = http.StatusGatewayTimeout, "timeout_error"
	}
	var detail struct{ Key string }
	if json.Unmarshal(failure.Detail, &detail) == nil {
		found.Param = detail.Key
	}
	return found
}

func refuse(w http.ResponseWriter, err error) {
	found := asAPIError(err)
	if found.status == http.StatusTooManyRequests || found.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	answer(w, found.status, map[string]any{"error": found})
}

// answerTime is how long a client may take to read an answer.
const answerTime = time.Minute

func answer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Not every connection has deadlines: then there is none.
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(answerTime))
	defer control.SetWriteDeadline(time.Time{})
	// A client that is gone is told nothing.
	_ = json.NewEncoder(w).Encode(value)
}

func (s *service) modelObject() map[string]any {
	return map[string]any{"id": s.name, "object": "model", "created": s.started.Unix(), "owned_by": "libqwen"}
}

func (s *service) models(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"object": "list", "data": []any{s.modelObject()}})
}

func (s *service) model(w http.ResponseWriter, r *http.Request) {
	if err := s.checkModel(r.PathValue("name")); err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, s.modelObject())
}

func (s *service) checkModel(name string) error {
	if name == s.name || name == "" {
		return nil
	}
	return &apiError{status: http.StatusNotFound, Message: fmt.Sprintf("there is no model %q here, but %q", name, s.name), Type: "invalid_request_error", Param: "model", Code: "model_not_found"}
}

func (s *service) health(w http.ResponseWriter, _ *http.Request) {
	err := s.engine.Health()
	if err == nil && s.draining.Load() {
		err = &apiError{status: http.StatusServiceUnavailable, Message: "draining", Type: "server_error", Code: "draining"}
	}
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"status": "ok"})
}

// metrics tells the engine's metrics in Prometheus's text format.
func (s *service) metrics(w http.ResponseWriter, _ *http.Request) {
	text, err := s.engine.Prometheus("")
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = io.WriteString(w, text)
}
