// The example programs, as a user runs them.

package qwen_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// built compiles a program of examples/.
func built(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	if output, err := exec.Command("go", "build", "-o", program, "./examples/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}

// A program may end in the middle of everything, and says nothing while it does.
func TestAProgramThatEndsWhileItGenerates(t *testing.T) {
	if os.Getenv("QWEN_TEST_EXIT") != "" {
		engine, err := qwen.Open(model)
		if err != nil {
			panic(err)
		}
		chat := qwen.Chat{Messages: []qwen.Message{qwen.User("Tell me a story.")}}
		for range 4 {
			go engine.Complete(context.Background(), chat)
		}
		for event := range engine.Stream(context.Background(), chat) {
			if event.Kind == qwen.EventDelta {
				os.Exit(7)
			}
		}
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

func TestTheChatIsTheSameAsInC(t *testing.T) {
	inC := root + "/build/bin/hello"
	if _, err := os.Stat(inC); err != nil {
		t.Fatal("run `make examples` first: ", err)
	}
	inGo := built(t, "chat")
	questions := []string{
		"What is the capital of France?", "Schreib mir etwas über Bäume 🌳.", "Say hello.", "",
	}
	for _, question := range questions {
		want, errC := exec.Command(inC, model, question).Output()
		have, errGo := exec.Command(inGo, model, question).Output()
		if string(have) != string(want) || (errC == nil) != (errGo == nil) {
			t.Errorf("%q\nin C:  %q %v\nin Go: %q %v", question, want, errC, have, errGo)
		}
	}
	output, err := exec.Command(inGo, "/no/such/folder", "x").CombinedOutput()
	if err == nil || !strings.Contains(string(output), "/no/such/folder") {
		t.Errorf("%v: %s", err, output)
	}
}
