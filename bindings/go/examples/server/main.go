// An HTTP server that speaks OpenAI's API, over one engine:
//
//	server --model DIR [--listen 127.0.0.1:8080] [--name NAME] [--engine KEY=VALUE]...
//
// Endpoints: /v1/chat/completions and /v1/completions (whole or streamed), /v1/models, /tokenize,
// /detokenize, /tokenizer_info, /metrics, /health, and a chat page at /. With an API key (in the environment, as
// QWEN_API_KEY) everything but the page and /health wants it. SIGTERM and SIGINT refuse new requests,
// let those that run finish for the time of --grace, and cancel what is left.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// engineFlags are the --engine KEY=VALUE of the command line.
type engineFlags []qwen.EngineOption

func (f *engineFlags) String() string { return "" }

// Set takes a value that is JSON as that, and any other as text.
func (f *engineFlags) Set(setting string) error {
	key, text, ok := strings.Cut(setting, "=")
	if !ok {
		return errors.New("wants KEY=VALUE")
	}
	var value any = text
	if json.Valid([]byte(text)) {
		value = json.RawMessage(text)
	}
	*f = append(*f, qwen.WithEngineOption(key, value))
	return nil
}

func run() error {
	var options engineFlags
	model := flag.String("model", "", "the checkpoint's folder")
	listen := flag.String("listen", "127.0.0.1:8080", "the address to listen at")
	name := flag.String("name", "", "the model's name in the API; the folder's if empty")
	grace := flag.Duration("grace", 30*time.Second, "how long requests may finish after a SIGTERM")
	limits := defaultLimits
	flag.DurationVar(&limits.time, "timeout", limits.time, "the longest that a request may take")
	flag.Int64Var(&limits.body, "max-body", limits.body, "the most bytes of a request")
	flag.IntVar(&limits.requests, "max-requests", limits.requests, "the most requests at once")
	flag.Var(&options, "engine", "an engine option, such as backend=cuda; repeatable")
	flag.Parse()
	if *model == "" || flag.NArg() > 0 || limits.requests < 1 || limits.body < 1 || limits.time <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *name == "" {
		*name = filepath.Base(*model)
	}

	logger := slog.Default()
	engine, err := qwen.Open(*model, append(options, qwen.WithLogger(logger))...)
	if err != nil {
		return err
	}
	defer engine.Close()
	service, err := newService(engine, *name, os.Getenv("QWEN_API_KEY"), limits)
	if err != nil {
		return err
	}
	defer service.close()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	logger.Info("listening", "address", listener.Addr().String(), "model", *name)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return service.serve(ctx, listener, *grace)
}

// serve answers until the context ends, and then drains for the time of grace.
func (s *service) serve(ctx context.Context, listener net.Listener, grace time.Duration) error {
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	s.draining.Store(true)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(late); err != nil {
		// Closing the connections ends the requests' contexts, and so their generation.
		return errors.Join(fmt.Errorf("requests were cut short: %w", err), server.Close())
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}
