// Completions of texts: their echoes and log-probabilities, which are held against the library's scores.

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

func TestCompletions(t *testing.T) {
	_, url := tiny(t)
	completions := url + "/v1/completions"
	greedy := `"temperature": 0, "ignore_eos": true`
	made := ask(t, completions, `{"prompt": "abc", "echo": true, `+greedy+`}`)
	if made.Object != "text_completion" || !strings.HasPrefix(made.Choices[0].Text, "abc") || made.Usage.Completion != 16 {
		t.Fatalf("%+v", made)
	}
	_, text := post(t, url+"/tokenize", `{"content": "abc"}`)
	var tokens struct {
		Tokens []uint32
		Count  int
	}
	if err := json.Unmarshal([]byte(text), &tokens); err != nil || tokens.Count != len(tokens.Tokens) || tokens.Count != made.Usage.Prompt {
		t.Fatal(text)
	}
	ids, _ := json.Marshal(tokens.Tokens)
	for _, prompt := range []string{string(ids), "[" + string(ids) + "]", `["abc"]`} {
		again := ask(t, completions, `{"echo": true, `+greedy+`, "prompt": `+prompt+`}`)
		if len(again.Choices) != 1 || again.Choices[0].Text != made.Choices[0].Text {
			t.Errorf("%s: %q, not %q", prompt, again.Choices[0].Text, made.Choices[0].Text)
		}
	}
	if _, text := post(t, url+"/detokenize", `{"tokens": `+string(ids)+`}`); !strings.Contains(text, `"abc"`) {
		t.Fatal(text)
	}
	many := `{"prompt": ["abc", "x"], "n": 3, "seed": 5, "max_tokens": 30, "ignore_eos": true`
	whole := ask(t, completions, many+`}`)
	if len(whole.Choices) != 6 || whole.Usage.Completion != 180 || whole.Choices[0].Text == whole.Choices[1].Text {
		t.Fatalf("%+v", whole)
	}
	texts := make([]string, 6)
	for _, chunk := range events(t, completions, many+`, "stream": true}`) {
		texts[chunk.Choices[0].Index] += chunk.Choices[0].Text
	}
	for i, choice := range whole.Choices {
		if texts[i] != choice.Text || choice.Index != i || *choice.FinishReason != "length" {
			t.Errorf("choice %d: %q streamed, %q whole", i, texts[i], choice.Text)
		}
	}
	if made := ask(t, completions, `{"prompt": "", "max_tokens": 3, "ignore_eos": true}`); made.Usage.Prompt != 1 {
		t.Fatalf("%+v", made)
	}
}

// A measured is a choice of a text, with its log-probabilities.
type measured struct {
	Index    int
	Text     string
	Finish   string `json:"finish_reason"`
	Logprobs struct {
		Tokens        []string
		TokenLogprobs []*float64           `json:"token_logprobs"`
		TopLogprobs   []map[string]float64 `json:"top_logprobs"`
		TextOffset    []int                `json:"text_offset"`
	}
}

func logprobsOf(t *testing.T, url, body string) []measured {
	t.Helper()
	var made struct{ Choices []measured }
	status, text := post(t, url+"/v1/completions", body)
	if err := json.Unmarshal([]byte(text), &made); status != http.StatusOK || err != nil {
		t.Fatal(status, text)
	}
	return made.Choices
}

func TestLogprobs(t *testing.T) {
	_, url := tiny(t)
	type token struct {
		Token   string
		Logprob float64
		Top     []struct{ Logprob float64 } `json:"top_logprobs"`
	}
	var chat struct {
		Choices []struct{ Logprobs struct{ Content []token } }
	}
	status, text := post(t, url+"/v1/chat/completions", `{"messages": [{"role": "user", "content": "x"}],
		"logprobs": true, "top_logprobs": 2, "max_tokens": 5, "ignore_eos": true, "seed": 3}`)
	if err := json.Unmarshal([]byte(text), &chat); status != 200 || err != nil {
		t.Fatal(status, text)
	}
	content := chat.Choices[0].Logprobs.Content
	if len(content) != 5 || len(content[4].Top) != 2 || content[4].Logprob >= 0 || content[4].Top[0].Logprob < content[4].Logprob {
		t.Fatal(text)
	}
	lists := logprobsOf(t, url, `{"prompt": "abc", "logprobs": 1, "max_tokens": 4, "ignore_eos": true, "seed": 3}`)[0].Logprobs
	if len(lists.Tokens) != 4 || len(lists.TokenLogprobs) != 4 || len(lists.TopLogprobs[3]) < 1 || lists.TextOffset[0] != 0 || lists.TextOffset[3] < 1 {
		t.Fatalf("%+v", lists)
	}
	streamed := 0
	for _, chunk := range events(t, url+"/v1/completions", `{"prompt": "abc", "logprobs": 1, "max_tokens": 60, "ignore_eos": true, "stream": true}`) {
		streamed += len(chunk.Choices[0].Logprobs.Tokens)
	}
	// Also of tokens that are half a character, and so bring no text.
	if streamed != 60 {
		t.Fatalf("log-probabilities of %d tokens came", streamed)
	}
}

// As lm-eval asks, by token ids, and with max_tokens 0 as others do.
func TestAnEchoIsMeasuredAsTheLibraryScoresIt(t *testing.T) {
	service, url := tiny(t)
	random := rand.New(rand.NewPCG(1, 2))
	var prompts [][]uint32
	for range 12 {
		var ids []uint32
		for range 2 + random.IntN(20) {
			ids = append(ids, random.Uint32N(290))
		}
		prompts = append(prompts, ids)
	}
	for _, maxTokens := range []int{0, 1, 9} {
		list, _ := json.Marshal(prompts)
		choices := logprobsOf(t, url, fmt.Sprintf(`{"prompt": %s, "echo": true, "logprobs": 1, "temperature": 0, "ignore_eos": true, "max_tokens": %d}`, list, maxTokens))
		if len(choices) != len(prompts) {
			t.Fatalf("%d choices", len(choices))
		}
		for i, made := range choices {
			ids, lists := prompts[i], made.Logprobs
			if made.Index != i || made.Finish != "length" || len(lists.Tokens) != len(ids)+maxTokens || len(lists.TokenLogprobs) != len(lists.Tokens) ||
				lists.TokenLogprobs[0] != nil || lists.TopLogprobs[0] != nil {
				t.Fatalf("%v: %+v", ids, made)
			}
			score, err := service.engine.ScoreTokens(ids[:1], ids[1:])
			if err != nil {
				t.Fatal(err)
			}
			for at, token := range score.Tokens {
				have, top := *lists.TokenLogprobs[at+1], slices.Max(values(lists.TopLogprobs[at+1]))
				if math.Abs(have-token.Logprob) > 1e-9 || (have == top) != token.IsGreedy {
					t.Fatalf("%v: token %d has %v of %v, and the score %+v", ids, at+1, have, top, token)
				}
			}
			// What is a text begins where it is said to.
			runes := []rune(made.Text)
			for at, name := range lists.Tokens {
				if !isName(name) && !strings.HasPrefix(string(runes[lists.TextOffset[at]:]), name) {
					t.Fatalf("%v: %q is not at %d of %q", ids, name, lists.TextOffset[at], made.Text)
				}
			}
		}
	}
}

func values(top map[string]float64) (all []float64) {
	for _, one := range top {
		all = append(all, one)
	}
	return all
}

// isName finds the tokens that are no text: parts of characters, and control tokens.
func isName(token string) bool {
	return strings.HasPrefix(token, "bytes:") || strings.HasPrefix(token, "<|")
}

func TestNoTokensAtAll(t *testing.T) {
	_, url := tiny(t)
	none := `{"prompt": "h\u00e9llo", "max_tokens": 0`
	if made := ask(t, url+"/v1/completions", none+`}`); made.Choices[0].Text != "" || made.Usage.Completion != 0 || *made.Choices[0].FinishReason != "length" {
		t.Fatalf("%+v", made)
	}
	if made := ask(t, url+"/v1/completions", none+`, "echo": true}`); made.Choices[0].Text != "héllo" || made.Usage.Total != made.Usage.Prompt {
		t.Fatalf("%+v", made)
	}
	text, tokens := "", 0
	for _, chunk := range events(t, url+"/v1/completions", none+`, "echo": true, "logprobs": 0, "stream": true}`) {
		text += chunk.Choices[0].Text
		tokens += len(chunk.Choices[0].Logprobs.Tokens)
	}
	if whole := logprobsOf(t, url, none+`, "echo": true, "logprobs": 0}`)[0]; text != "héllo" || tokens != len(whole.Logprobs.Tokens) || len(whole.Logprobs.TopLogprobs[1]) != 1 {
		t.Fatalf("%q, %d tokens, %+v", text, tokens, whole)
	}
}

// Bytes that are no characters are shown as one U+FFFD for as many as could have begun a character.
func TestPlaces(t *testing.T) {
	texts := map[string][]int{
		"a|b": {0, 1}, "\xe4\xbd|\xa0|x": {0, 0, 1}, "\xe4|x": {0, 1}, "\xf0\x9f|x|y": {0, 1, 2}, "\xff\xff|x": {0, 2},
		"\xe4\xbdx|y": {0, 2}, "\xc0\x80|x": {0, 2}, "a😀|\uFFFD|x": {0, 2, 3},
	}
	for text, want := range texts {
		at := place{control: func(qwen.Logprob) bool { return false }}
		for i, token := range strings.Split(text, "|") {
			if begins := at.pass(qwen.Logprob{Bytes: []byte(token)}); begins != want[i] {
				t.Errorf("%q: token %d at %d, not %d", text, i, begins, want[i])
			}
		}
	}
	at := place{control: func(qwen.Logprob) bool { return false }, echoed: 1}
	at.pass(qwen.Logprob{Bytes: []byte("\xe4\xbd")})
	if begins := at.pass(qwen.Logprob{Bytes: []byte("\xa0")}); begins != 1 {
		t.Error("the echo's last character goes on in the reply:", begins)
	}
	if !utf8.ValidString(tokenName(qwen.Logprob{Bytes: []byte("\xe4")})) || tokenName(qwen.Logprob{Bytes: []byte("\xe4")}) != `bytes:\xe4` {
		t.Error("the name of a half character")
	}
}
