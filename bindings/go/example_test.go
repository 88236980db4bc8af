// Programs to read, and to run: `go test` compares what they print.

package qwen_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// model is a checkpoint's folder.
const model = "../../demo/chat-model"

func Example() {
	engine, err := qwen.Open(model)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	result, err := engine.Complete(context.Background(), qwen.Chat{
		Messages: []qwen.Message{qwen.User("What is the capital of France?")},
		Generation: qwen.Generation{
			Temperature: qwen.Ptr(0.0), RepetitionPenalty: qwen.Ptr(1.0), MaxTokens: qwen.Ptr(32),
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Text)
	// Output: The capital of France is Paris.
}

// greedy always takes the likeliest token.
var greedy = qwen.Generation{
	Temperature: qwen.Ptr(0.0), RepetitionPenalty: qwen.Ptr(1.0), MaxTokens: qwen.Ptr(32),
}

// opened is an engine for the examples that are about something else.
var opened = sync.OnceValue(func() *qwen.Engine {
	engine, err := qwen.Open(model)
	if err != nil {
		panic(err)
	}
	qwen.AtEnd = append(qwen.AtEnd, engine.Close)
	return engine
})

func ExampleEngine_Stream() {
	ctx, engine := context.Background(), opened()
	chat := qwen.Chat{
		Messages:   []qwen.Message{qwen.User("What is the capital of France?")},
		Generation: greedy,
	}
	for event, err := range engine.Stream(ctx, chat) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Print(event.Text) // whole characters, as they come
		if event.Kind == qwen.EventFinished {
			fmt.Printf("\n(%s after %d tokens)\n", event.Finish, event.Usage.CompletionTokens)
		}
	}
	// Output:
	// The capital of France is Paris.
	// (stop after 7 tokens)
}

func ExampleEngine_Stream_cancel() {
	engine := opened()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	chat := qwen.Chat{
		Messages:   []qwen.Message{qwen.User("Count to a thousand.")},
		Generation: qwen.Generation{MaxTokens: qwen.Ptr(1500), IgnoreEOS: qwen.Ptr(true)},
	}
	_, err := engine.Complete(ctx, chat)
	fmt.Println(errors.Is(err, context.DeadlineExceeded), errors.Is(err, qwen.ErrCancelled))
	// Output: true true
}

func ExampleEngine_NewSession() {
	ctx, engine := context.Background(), opened()
	session, err := engine.NewSession(qwen.WithSystem("You are a helpful assistant."))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer session.Close()
	if _, err := session.Send(ctx, "My name is Ada.", greedy); err != nil {
		fmt.Println(err)
		return
	}
	messages, err := session.Messages()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, message := range messages[:2] {
		fmt.Printf("%s: %s\n", message.Role, message.Content)
	}
	// Output:
	// system: You are a helpful assistant.
	// user: My name is Ada.
}

func ExampleEngine_Complete_concurrent() {
	engine := opened()
	capitals := []string{"France", "Italy", "Spain"}
	answers := make([]string, len(capitals))
	var all sync.WaitGroup
	for i, country := range capitals {
		all.Add(1)
		go func() {
			defer all.Done()
			question := qwen.User("What is the capital of " + country + "?")
			chat := qwen.Chat{Messages: []qwen.Message{question}, Generation: greedy}
			if result, err := engine.Complete(context.Background(), chat); err == nil {
				answers[i] = result.Text
			}
		}()
	}
	all.Wait()
	fmt.Println(answers[0])
	// Output: The capital of France is Paris.
}

func ExampleError() {
	_, err := qwen.Open("/no/such/folder")
	var failure *qwen.Error
	switch {
	case errors.Is(err, fs.ErrNotExist): // qwen.ErrNotFound, too
		fmt.Println("there is no such checkpoint")
	case errors.Is(err, qwen.ErrOOMDevice), errors.Is(err, qwen.ErrOOMHost):
		fmt.Println("it does not fit")
	case errors.As(err, &failure):
		fmt.Println(failure.Code, failure.Message, string(failure.Detail))
	}
	// Output: there is no such checkpoint
}

func ExampleOpen_options() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	engine, err := qwen.Open(model,
		qwen.WithBackend("cpu"),
		qwen.WithMaxQueueRequests(256),
		qwen.WithLogger(logger),
		qwen.WithProgress(func(done, total uint64) error { return nil }),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	info, err := engine.Info()
	fmt.Println(info.Backend.Name, err)
	// Output: cpu <nil>
}

func ExampleEngine_Shutdown() {
	engine, err := qwen.Open(model)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println(engine.Shutdown(ctx)) // waits for the requests that run
	_, err = engine.Complete(ctx, qwen.Chat{Messages: []qwen.Message{qwen.User("Hello?")}})
	fmt.Println(errors.Is(err, qwen.ErrClosed))
	// Output:
	// <nil>
	// true
}

func ExampleTokenizer() {
	tokenizer, err := qwen.OpenTokenizer(model) // needs no weights
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tokenizer.Close()
	ids, err := tokenizer.Encode("Hello, 世界")
	if err != nil {
		fmt.Println(err)
		return
	}
	text, err := tokenizer.Decode(ids)
	fmt.Println(string(text), err)
	// Output: Hello, 世界 <nil>
}
