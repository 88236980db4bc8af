// What must not drift apart: the generated files and the library, the calls of qwen.h and those that
// this package makes, the snippets in the documentation and programs that compile.

package qwen_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/libqwen/libqwen/bindings/go/internal/gen"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestGeneratedFilesAreTheLibrarys(t *testing.T) {
	files, err := gen.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if have := read(t, name); !bytes.Equal([]byte(have), want) {
			t.Errorf("%s is not what the library says now: run `make go-generate`", name)
		}
	}
}

// notCalled are functions that this package has no use for, and why.
var notCalled = map[string]string{
	"qwen_request_next":        "a call that waits holds an OS thread; events come through the engine's queue",
	"qwen_request_run":         "the same",
	"qwen_event_free":          "events come in lists",
	"qwen_event_logprobs_json": "qwen_event_logprob has the same, without JSON",
}

func TestEveryFunctionOfTheHeaderIsCalled(t *testing.T) {
	var ours strings.Builder
	for _, pattern := range []string{"*.go", "shim.c"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if !strings.HasSuffix(path, "_test.go") {
				ours.WriteString(read(t, path))
			}
		}
	}
	declared := regexp.MustCompile(`(?m)^[a-z].*?\b(qwen_[a-z0-9_]+)\(`)
	found := declared.FindAllStringSubmatch(read(t, root+"/include/qwen.h"), -1)
	if len(found) < 60 {
		t.Fatalf("only %d functions are found in qwen.h", len(found))
	}
	for _, one := range found {
		name := one[1]
		called := regexp.MustCompile(`\b` + name + `\(`).MatchString(ours.String())
		if _, excused := notCalled[name]; called == excused {
			t.Errorf("%s: called is %v, excused %v", name, called, excused)
		}
	}
}

// programs are the files whose code is compiled, and run, by the tests.
func programs(t *testing.T) []string {
	var texts []string
	for _, pattern := range []string{"example_test.go", "examples/*/*.go"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			texts = append(texts, flat(read(t, path)))
		}
	}
	return texts
}

// flat is code without indentation.
func flat(code string) string {
	var lines []string
	for line := range strings.Lines(code) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}

func TestSnippetsAreOfProgramsThatCompile(t *testing.T) {
	known := programs(t)
	for _, path := range []string{"README.md", root + "/README.md"} {
		text := read(t, path)
		fences := strings.Split(text, "\n```go\n")[1:]
		if len(fences) == 0 {
			t.Errorf("%s shows no Go", path)
		}
		for _, fence := range fences {
			snippet, _, _ := strings.Cut(fence, "\n```")
			isPart := func(program string) bool { return strings.Contains(program, flat(snippet)) }
			if !slices.ContainsFunc(known, isPart) {
				t.Errorf("%s: no example has this code:\n%s", path, snippet)
			}
		}
	}
}
