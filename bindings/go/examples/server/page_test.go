// The page in a headless Chromium, with the demo model behind it, or with replies that no model gives.

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A long story is one that no end comes to, and the same every time.
const longStory = "very long story"

func endless(body []byte) []byte {
	var keys map[string]any
	json.Unmarshal(body, &keys)
	keys["temperature"], keys["ignore_eos"], keys["max_tokens"] = 0, true, 1500
	body, _ = json.Marshal(keys)
	return body
}

// A heard is the requests that the page made, as far as they matter.
type heard struct {
	mu   sync.Mutex
	last struct {
		Messages    []struct{ Role, Content string }
		Temperature *float64
	}
}

func (h *heard) roles() (roles []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, message := range h.last.Messages {
		roles = append(roles, message.Role)
	}
	return roles
}

// canned are replies to the question of their name: a status and a body, each part sent by itself.
var canned = map[string]struct {
	status int
	parts  []string
}{
	"markup": {200, []string{`data: {"choices":[{"delta":{"content":"<img src=x onerror='window.hacked=1'><script>window.hacked=1</scr`, `ipt>\n` +
		"```html\\n<b>bold</b>\\n```\\n\xf0\x9f", "\x98\x80\"}}]}\n", "\n", "data: [DO", "NE]\n\n"}},
	"refused":   {400, []string{`{"error": {"message": "<i>no</i>"}}`}},
	"fails":     {200, []string{"data: {\"choices\":[{\"delta\":{\"content\":\"so far\"}}]}\n\n", "data: {\"error\":{\"message\":\"the engine failed\"}}\n\n"}},
	"cut short": {200, []string{"data: {\"choices\":[{\"delta\":{\"content\":\"begun\"}}]}\n\n"}},
}

// openPage serves the page and listens to what it asks.
func openPage(t *testing.T, key string) (*browser, *service, string, *heard) {
	t.Helper()
	page := openBrowser(t)
	service, _ := start(t, demoModel, key)
	heard, real := &heard{}, service.handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			body, _ := io.ReadAll(r.Body)
			heard.mu.Lock()
			heard.last.Messages, heard.last.Temperature = nil, nil
			json.Unmarshal(body, &heard.last)
			last := heard.last.Messages[len(heard.last.Messages)-1].Content
			heard.mu.Unlock()
			if reply, ok := canned[last]; ok {
				w.WriteHeader(reply.status)
				for _, part := range reply.parts {
					io.WriteString(w, part)
					http.NewResponseController(w).Flush()
				}
				return
			}
			if strings.Contains(last, longStory) {
				body = endless(body)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	page.size(900, 640, "light")
	page.open(server.URL + "/")
	return page, service, server.URL, heard
}

const (
	last    = `[...document.querySelectorAll(".turn")].at(-1).textContent`
	settled = `document.getElementById("stop").disabled`
)

// press clicks a button, or opens the settings.
func (b *browser) press(selector string) {
	b.t.Helper()
	b.run(`document.querySelector("`+selector+`").click()`, nil)
}

// set fills a field of the settings as a person does.
func (b *browser) set(id, value string) {
	b.t.Helper()
	b.run(`document.getElementById("`+id+`").select()`, nil)
	b.call("Input.insertText", map[string]any{"text": value}, nil)
	b.run(`document.getElementById("text").focus()`, nil)
}

func (b *browser) turns() (texts []string) {
	b.t.Helper()
	b.run(`[...document.querySelectorAll(".turn")].map(turn => turn.textContent)`, &texts)
	return texts
}

func TestThePageChats(t *testing.T) {
	page, _, url, heard := openPage(t, "")
	page.press("summary")
	page.set("temperature", "0")
	const question = "What is the capital of France?"
	page.enter(question)
	page.until(`document.querySelector(".assistant")?.textContent && ` + settled)
	want := ask(t, url+"/v1/chat/completions", `{"messages": [{"role": "user", "content": "`+question+`"}], "temperature": 0}`)
	if turns := page.turns(); !slices.Equal(turns, []string{question, want.Choices[0].Message.Content}) {
		t.Fatalf("%q", turns)
	}
	if status := page.text(`document.getElementById("status").textContent`); !strings.Contains(status, "tokens, ") {
		t.Errorf("%q", status)
	}

	page.set("system", "You are a pirate.")
	page.enter("What is your name?")
	page.until(`document.querySelectorAll(".assistant").length === 2 && ` + settled)
	if roles := heard.roles(); !slices.Equal(roles, []string{"system", "user", "assistant", "user"}) || *heard.last.Temperature != 0 {
		t.Error(roles)
	}
	before := page.turns()
	page.press("#again")
	page.until(`document.querySelectorAll(".assistant").length === 2 && ` + settled)
	if turns := page.turns(); !slices.Equal(turns, before) || len(heard.roles()) != 4 {
		t.Errorf("%q again, greedily, is %q", before, turns)
	}
	page.reload()
	if turns := page.turns(); !slices.Equal(turns, before) || page.text(`document.getElementById("system").value`) != "You are a pirate." {
		t.Errorf("%q after a reload", turns)
	}
	if path := os.Getenv("QWEN_SCREENSHOT"); path != "" {
		page.size(900, 480, "light")
		page.shoot(path)
	}
	page.press("#clear")
	page.reload()
	if turns := page.turns(); len(turns) != 0 || !strings.Contains(page.text("document.body.innerText"), "Ask something.") {
		t.Errorf("%q after all was cleared", turns)
	}
	page.noErrors()
}

// That a part of a reply can be stopped shows, too, that the page does not wait for the whole.
func TestThePageStops(t *testing.T) {
	page, service, _, heard := openPage(t, "")
	page.enter("Tell me a " + longStory + " about a ship, with many chapters.")
	page.until(`document.querySelector(".assistant")?.textContent.length > 20`)
	page.press("#stop")
	page.until(settled)
	metrics := running(t, service, 0)
	begun := page.turns()[1]
	if metrics.RequestsCancelled != 1 || len(begun) <= 20 || page.text(`document.getElementById("status").textContent`) != "stopped" {
		t.Fatalf("%+v, %q", metrics, begun)
	}
	page.enter("markup")
	page.until(`document.querySelectorAll(".assistant").length === 2 && ` + settled)
	if heard.last.Messages[1].Content != begun {
		t.Errorf("what was stopped is %q in the conversation", heard.last.Messages[1].Content)
	}
	page.press("#clear")
	page.enter("Tell me another " + longStory + ".")
	page.until(`document.querySelector(".assistant")?.textContent.length > 5`)
	page.press("#clear")
	metrics = running(t, service, 0)
	page.run(`new Promise(done => setTimeout(done, 200))`, nil)
	page.reload()
	if turns := page.turns(); len(turns) != 0 || metrics.RequestsCancelled != 2 {
		t.Errorf("%q came after all was cleared; %+v", turns, metrics)
	}
	page.noErrors()
}

func TestThePageShowsMarkupAsText(t *testing.T) {
	page, _, _, _ := openPage(t, "")
	const mine = `<img src=x onerror="window.hacked=1"><svg onload="window.hacked=1">`
	page.enter(mine)
	page.until(`document.querySelector(".assistant")?.textContent && ` + settled)
	page.enter("markup")
	page.until(last + `.includes("😀")`)
	page.until(settled)
	const theirs = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\n<b>bold</b>\n😀"
	for range 2 {
		turns := page.turns()
		if turns[0] != mine || strings.ReplaceAll(turns[3], "\n", "") != strings.ReplaceAll(theirs, "\n", "") {
			t.Errorf("%q", turns)
		}
		if code := page.text(`[...document.querySelectorAll(".assistant")].at(-1).querySelector("pre").textContent`); code != "<b>bold</b>" {
			t.Errorf("%q", code)
		}
		var elements int
		page.run(`document.querySelectorAll("#log :not(.turn, pre)").length`, &elements)
		if hacked := page.text("String(window.hacked)"); elements != 0 || hacked != "undefined" {
			t.Errorf("%d elements, %s", elements, hacked)
		}
		page.reload() // and what was kept is text, too
	}
	page.noErrors()
	// Were it not, the browser would refuse to run it.
	page.run(`document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked=1'>");
		document.body.append(Object.assign(document.createElement("script"), { textContent: "window.hacked=1" }));
		new Promise(done => setTimeout(done, 200))`, nil)
	if hacked := page.text("String(window.hacked)"); hacked != "undefined" {
		t.Error("the policy lets other scripts run")
	}
}

func TestThePageTellsWhatFailed(t *testing.T) {
	page, _, _, _ := openPage(t, "secret")
	failed := func(question, reply, failure string) {
		t.Helper()
		page.enter(question)
		page.until(`document.querySelector(".failed") && ` + settled)
		turns := page.turns()
		if !strings.Contains(turns[len(turns)-1], failure) || (reply != "" && turns[len(turns)-2] != reply) {
			t.Errorf("%s: %q", question, turns)
		}
		page.press("#clear")
	}
	failed("anything", "", "the API key is missing or wrong")
	page.press("summary")
	page.set("key", "secret")
	failed("refused", "", "<i>no</i>")
	failed("fails", "so far", "the engine failed")
	failed("cut short", "begun", "ended in the middle")
	// A new question takes the place of one that failed.
	page.enter("refused")
	page.until(`document.querySelector(".failed") && ` + settled)
	page.enter("markup")
	page.until(`document.querySelector(".assistant")?.textContent && ` + settled)
	if turns := page.turns(); len(turns) != 2 {
		t.Errorf("%q", turns)
	}
	if kept := page.text(`JSON.stringify({ ...sessionStorage, ...localStorage }) + document.cookie`); !strings.Contains(kept, "markup") || strings.Contains(kept, "secret") {
		t.Error("what is kept: ", kept)
	}
	page.reload()
	if key := page.text(`document.getElementById("key").value`); key != "" {
		t.Error("the key came back: ", key)
	}
}

func TestThePageFitsPhonesAndDarkRooms(t *testing.T) {
	page, _, _, _ := openPage(t, "")
	page.enter("markup " + strings.Repeat("x", 200))
	page.until(`document.querySelector(".assistant")?.textContent && ` + settled)
	page.press("summary")
	background := `getComputedStyle(document.body).backgroundColor`
	light := page.text(background)
	page.size(340, 640, "dark")
	if dark := page.text(background); dark == light {
		t.Error("dark is as light: ", dark)
	}
	var width int
	if page.run("document.documentElement.scrollWidth", &width); width > 340 {
		t.Errorf("the page is %d pixels wide", width)
	}
	page.noErrors()
}
