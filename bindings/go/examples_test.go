// The example programs, as a user runs them.

package qwen_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
