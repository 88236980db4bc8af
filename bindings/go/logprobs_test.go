// Log-probabilities, as far as the binding carries them: what they are is tested in Rust.

package qwen

import (
	"bytes"
	"math"
	"slices"
	"testing"
)

func TestLogprobsAreOfTheTokens(t *testing.T) {
	engine := openTiny(t)
	tokenizer := value[*Tokenizer](t)(engine.Tokenizer())
	defer tokenizer.Close()
	greedy := exactly(40)
	greedy.Temperature, greedy.RepetitionPenalty = Ptr(0.0), Ptr(1.0)
	greedy.Logprobs, greedy.TopLogprobs = Ptr(true), Ptr(3)
	result := value[*Result](t)(engine.Complete(t.Context(), Chat{Messages: []Message{User("x")}, Generation: greedy}))
	if len(result.Logprobs) != len(result.Tokens) || len(result.Tokens) != 40 {
		t.Fatalf("%d log-probabilities of %d tokens", len(result.Logprobs), len(result.Tokens))
	}
	for i, one := range result.Logprobs {
		if one.ID != result.Tokens[i] || len(one.Top) != 3 || one.Logprob.Logprob >= 0 {
			t.Fatalf("token %d: %+v", i, one)
		}
		// A greedy reply has the likeliest token in each place.
		if one.Top[0].ID != one.ID || one.Top[0].Logprob != one.Logprob.Logprob {
			t.Fatalf("token %d: %+v", i, one)
		}
		falling := slices.IsSortedFunc(one.Top, func(a, b Logprob) int { return int(math.Copysign(1, b.Logprob-a.Logprob)) })
		if want := value[[]byte](t)(tokenizer.TokenBytes(one.ID)); !falling || !bytes.Equal(one.Bytes, want) {
			t.Fatalf("token %d: %+v", i, one)
		}
	}
	without := value[*Result](t)(engine.Complete(t.Context(), ask("x", 5)))
	if without.Logprobs != nil {
		t.Fatal("nobody asked for log-probabilities")
	}
	box := newMailbox()
	for i := range 3 {
		box.put(Event{Kind: EventDelta, Logprobs: result.Logprobs[i : i+1]})
	}
	joined, _, err := box.take(t.Context(), box.wait)
	must(t, err)
	if len(joined.Logprobs) != 3 || joined.Logprobs[2].ID != result.Tokens[2] || result.Logprobs[1].ID != result.Tokens[1] {
		t.Fatalf("%+v", joined)
	}
}
