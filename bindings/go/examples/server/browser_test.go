// A headless Chromium for the tests of the page, driven by its DevTools protocol over two pipes: JSON
// with a zero byte behind each message. No driver program and no package is needed for it.

package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience is for a machine that has much else to do.
const patience = time.Minute

type browser struct {
	t       *testing.T
	to      io.Writer
	session string

	mu      sync.Mutex
	lastID  int
	waiting map[int]chan devtoolsMessage
	// What the console has of errors.
	errors []string
}

type devtoolsMessage struct {
	ID     int
	Method string
	Params json.RawMessage
	Result json.RawMessage
	Error  *struct{ Message string }
}

// findBrowser skips the test where there is none, unless there must be one.
func findBrowser(t *testing.T) string {
	// As in .ci/deps. The last may be no more than a word of Ubuntu's about where to get one.
	for _, name := range []string{"chromium-headless-shell", "chromium", "google-chrome", "google-chrome-stable", "chromium-browser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("QWEN_REQUIRE_BROWSER") != "" {
		t.Fatal("there is no Chromium and no Google Chrome")
	}
	t.Skip("SKIPPED: there is no Chromium (Debian's chromium-headless-shell) and no Google Chrome")
	return ""
}

// openBrowser has an empty page open, which ends with the test.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	command := exec.Command(findBrowser(t), "--headless", "--remote-debugging-pipe", "--no-sandbox",
		"--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
		"--hide-scrollbars", "--user-data-dir="+t.TempDir(), "about:blank")
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// The first of these is the descriptor 3, from which it reads.
	command.ExtraFiles = []*os.File{theirs, theirOut}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	theirOut.Close()
	b := &browser{t: t, to: to, waiting: map[int]chan devtoolsMessage{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.listen(from)
	}()
	t.Cleanup(func() {
		b.post("Browser.close", nil)
		// It ends by itself, with its children; if it does not, it is made to.
		late := time.AfterFunc(patience, func() { command.Process.Kill() })
		command.Wait()
		late.Stop()
		<-ended
		to.Close()
		from.Close()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

func (b *browser) listen(from io.Reader) {
	for reader := bufio.NewReader(from); ; {
		text, err := reader.ReadBytes(0)
		if err != nil {
			return
		}
		var message devtoolsMessage
		if json.Unmarshal(text[:len(text)-1], &message) != nil {
			continue
		}
		b.mu.Lock()
		if waiting := b.waiting[message.ID]; waiting != nil {
			delete(b.waiting, message.ID)
			waiting <- message
		}
		var said struct {
			Type  string
			Entry struct{ Level string }
		}
		json.Unmarshal(message.Params, &said)
		if message.Method == "Runtime.exceptionThrown" || said.Type == "error" || said.Entry.Level == "error" {
			b.errors = append(b.errors, string(message.Params))
		}
		b.mu.Unlock()
	}
}

func (b *browser) post(method string, params any) <-chan devtoolsMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastID++
	message := map[string]any{"id": b.lastID, "method": method}
	if params != nil {
		message["params"] = params
	}
	if b.session != "" && method != "Browser.close" {
		message["sessionId"] = b.session
	}
	answer := make(chan devtoolsMessage, 1)
	b.waiting[b.lastID] = answer
	text, _ := json.Marshal(message)
	b.to.Write(append(text, 0))
	return answer
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	select {
	case answer := <-b.post(method, params):
		if answer.Error != nil {
			b.t.Fatal(method, ": ", answer.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(answer.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
	case <-time.After(patience):
		b.t.Fatal(method, ": no answer")
	}
}

// run evaluates JavaScript and reads its value.
func (b *browser) run(script string, value any) {
	b.t.Helper()
	var made struct {
		Result struct{ Value json.RawMessage }
		Thrown *struct {
			Exception struct{ Description string }
		} `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true, "awaitPromise": true}, &made)
	if made.Thrown != nil {
		b.t.Fatal(script, ": ", made.Thrown.Exception.Description)
	}
	if value != nil {
		if err := json.Unmarshal(made.Result.Value, value); err != nil {
			b.t.Fatal(script, ": ", err)
		}
	}
}

// text is the value of an expression that is a text.
func (b *browser) text(script string) (text string) {
	b.t.Helper()
	b.run(script, &text)
	return text
}

// until waits for a condition in JavaScript.
func (b *browser) until(condition string) {
	b.t.Helper()
	for start := time.Now(); time.Since(start) < patience; time.Sleep(5 * time.Millisecond) {
		var holds bool
		if b.run("!!("+condition+")", &holds); holds {
			return
		}
	}
	b.t.Fatalf("never: %s; the page says %q", condition, b.text("document.body.innerText"))
}

// open loads a page whose script has run; so does reload.
func (b *browser) open(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.until(`location.href.startsWith("` + url + `") && document.readyState === "complete"`)
}

func (b *browser) reload() {
	b.t.Helper()
	b.run("window.isOld = true", nil)
	b.call("Page.reload", nil, nil)
	b.until(`!window.isOld && document.readyState === "complete"`)
}

// enter types a text where the focus is, as a person does, and presses Enter.
func (b *browser) enter(text string) {
	b.t.Helper()
	b.call("Input.insertText", map[string]any{"text": text}, nil)
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{
			"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": map[bool]string{true: "\r"}[kind == "keyDown"],
		}, nil)
	}
}

func (b *browser) size(width, height int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
	}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{
		"features": []any{map[string]string{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
}

// shoot writes a picture of the page.
func (b *browser) shoot(path string) {
	b.t.Helper()
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	picture, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(path, picture, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// noErrors fails if the console has any.
func (b *browser) noErrors() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.errors) > 0 {
		b.t.Error(fmt.Sprint("errors in the console: ", slices.Clone(b.errors)))
	}
}
