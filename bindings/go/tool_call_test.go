// Tools and scores, as far as the binding carries them: what they are is tested in Rust.

package qwen

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

func TestCallsAndResultsAreRemembered(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	if _, err := session.ToolResult(t.Context(), "sunny"); !errors.Is(err, ErrState) {
		t.Fatalf("a result that nobody waits for: %v", err)
	}
	call := ToolCall{ID: "call_1", Name: "weather", Arguments: `{"place": "Höhe"}`}
	asked := []Message{User("How is the weather?"), {Role: "assistant", ToolCalls: []ToolCall{call}}}
	must(t, session.Append(asked...))
	value[*Result](t)(session.ToolResult(t.Context(), "sunny", exactly(5)))
	messages := value[[]Message](t)(session.Messages())
	if len(messages) != 5 || !reflect.DeepEqual(messages[1:3], asked) {
		t.Fatalf("%+v", messages)
	}
	if !reflect.DeepEqual(messages[3], ToolResult(call, "sunny")) || messages[4].Role != "assistant" {
		t.Fatalf("%+v", messages[3:])
	}
}

func TestScores(t *testing.T) {
	engine := openTiny(t)
	score := value[*Score](t)(engine.Score("hello", " world"))
	if len(score.Tokens) == 0 || score.Logprob >= 0 {
		t.Fatalf("%+v", score)
	}
	sum, greedy := 0.0, true
	var ids []uint32
	for _, token := range score.Tokens {
		sum, greedy, ids = sum+token.Logprob, greedy && token.IsGreedy, append(ids, token.ID)
	}
	if math.Abs(sum-score.Logprob) > 1e-9 || greedy != score.IsGreedy {
		t.Fatalf("%+v: the sum is %v", score, sum)
	}
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	defer tokenizer.Close()
	context := value[[]uint32](t)(tokenizer.Encode("hello"))
	again := value[*Score](t)(engine.ScoreTokens(context, ids))
	if again.Logprob != score.Logprob {
		t.Fatalf("%v of tokens, %v of texts", again.Logprob, score.Logprob)
	}
	if _, err := engine.ScoreTokens(nil, ids); !errors.Is(err, ErrArg) {
		t.Fatalf("without a context: %v", err)
	}
}

func TestChoicesAreToldApart(t *testing.T) {
	engine := openTiny(t)
	three := exactly(8)
	three.N = Ptr(3)
	tokens := map[int]int{}
	for event, err := range engine.Stream(t.Context(), Chat{Messages: []Message{User("x")}, Generation: three}) {
		must(t, err)
		tokens[event.Choice] += len(event.Tokens)
	}
	if !reflect.DeepEqual(tokens, map[int]int{0: 8, 1: 8, 2: 8}) {
		t.Fatalf("%v", tokens)
	}
}
