// A program that uses the package, as a user runs it.

package qwen_test

import (
	"context"
	"os"
	"os/exec"
	"testing"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// A program may end in the middle of everything, and says nothing while it does.
func TestAProgramThatEndsWhileItGenerates(t *testing.T) {
	if os.Getenv("QWEN_TEST_EXIT") != "" {
		engine, err := qwen.Open(model)
		if err != nil {
			panic(err)
		}
		// It has no end of its own, which a slow reader would find in its first event.
		chat := qwen.Chat{Messages: []qwen.Message{qwen.User("Tell me a story.")}}
		chat.Generation = qwen.Generation{IgnoreEOS: qwen.Ptr(true), MaxTokens: qwen.Ptr(1500)}
		for range 4 {
			go engine.Complete(context.Background(), chat)
		}
		for event := range engine.Stream(context.Background(), chat) {
			if event.Kind == qwen.EventDelta {
				os.Exit(7)
			}
		}
		os.Exit(8)
	}
	for range 3 {
		program := exec.Command(os.Args[0], "-test.run=^TestAProgramThatEndsWhileItGenerates$")
		program.Env = append(os.Environ(), "QWEN_TEST_EXIT=1")
		output, _ := program.CombinedOutput()
		if status := program.ProcessState.ExitCode(); status != 7 || len(output) != 0 {
			t.Fatalf("status %d: %s", status, output)
		}
	}
}
