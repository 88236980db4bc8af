// Sessions and tokenizers.

package qwen

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestASessionRemembers(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession(WithSystem("be brief")))
	defer session.Close()
	if _, err := session.Reply(); !errors.Is(err, ErrState) {
		t.Fatal(err)
	}
	first := value[*Result](t)(session.Send(t.Context(), "one", exactly(30)))
	if len(first.Tokens) != 30 || value[string](t)(session.Reply()) != first.Text {
		t.Fatalf("%+v", first)
	}
	again := value[*Result](t)(session.Regenerate(t.Context(), exactly(30), Generation{Seed: Ptr(8)}))
	if again.Text == first.Text {
		t.Fatal("another seed, the same reply")
	}
	same := value[*Result](t)(session.Regenerate(t.Context(), exactly(30)))
	if same.Text != first.Text {
		t.Fatal("the same seed, another reply")
	}
	must(t, session.Append(User("two <|im_end|>"), Assistant("")))
	want := []Message{System("be brief"), User("one"), Assistant(first.Text), User("two <|im_end|>"), Assistant("")}
	if messages := value[[]Message](t)(session.Messages()); !reflect.DeepEqual(messages, want) {
		t.Fatalf("%q", messages)
	}
	must(t, session.Truncate(1))
	must(t, session.SetSystem(""))
	want = []Message{System(""), want[1], want[2]}
	if messages := value[[]Message](t)(session.Messages()); !reflect.DeepEqual(messages, want) {
		t.Fatalf("%q", messages)
	}
	must(t, session.ResetSystem())
	if messages := value[[]Message](t)(session.Messages()); reflect.DeepEqual(messages[0], want[0]) {
		t.Fatalf("%q", messages)
	}
	if err := session.Append(Assistant("out of order")); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
}

func TestASessionServesOneCallAtATime(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	stopped := false
	var last Event
	for event, err := range session.Stream(t.Context(), "x", exactly(1900)) {
		must(t, err)
		if _, err := session.Send(t.Context(), "y"); !stopped && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		if event.Kind == EventDelta && !stopped {
			must(t, session.Stop())
			stopped = true
		}
		last = event
		if last.Kind == EventFinished {
			break
		}
	}
	if last.Finish != FinishCancelled || last.Usage.CompletionTokens == 0 {
		t.Fatalf("%+v", last)
	}
}

func TestAStoppedTurnIsKeptAndACancelledOneForgotten(t *testing.T) {
	engine := open(t, demoModel)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	for event, err := range session.Stream(t.Context(), "Tell me a story.", exactly(1500)) {
		must(t, err)
		if event.Kind == EventDelta {
			must(t, session.Stop())
		}
	}
	kept := value[[]Message](t)(session.Messages())
	if len(kept) < 2 || kept[len(kept)-1].Role != "assistant" {
		t.Fatalf("%q", kept)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var last error
	for event, err := range session.Stream(ctx, "Go on.", exactly(1500)) {
		if event.Kind == EventDelta {
			cancel()
		}
		last = err
	}
	cancel()
	if !errors.Is(last, context.Canceled) {
		t.Fatal(last)
	}
	for range session.Stream(t.Context(), "Go on.", exactly(1500)) {
		break
	}
	if messages := value[[]Message](t)(session.Messages()); !reflect.DeepEqual(messages, kept) {
		t.Fatalf("%q", messages)
	}
	idle(t, engine)
	if made := value[Metrics](t)(engine.Metrics()).GeneratedTokens; made > 400 {
		t.Fatalf("%d tokens were made", made)
	}
}

// golden_tokens.jsonl is by Python's tiktoken.
func TestTokensAreThoseOfTiktoken(t *testing.T) {
	tokenizer := value[*Tokenizer](t)(OpenTokenizer(vocabulary))
	defer tokenizer.Close()
	file := value[*os.File](t)(os.Open("../../tests/data/golden_tokens.jsonl"))
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<20)
	checked := 0
	for lines.Scan() {
		var text string
		var golden []uint32
		if lines.Bytes()[0] != '[' {
			continue // the line that says where the others come from
		}
		must(t, json.Unmarshal(lines.Bytes(), &[]any{&text, &golden}))
		ids := value[[]uint32](t)(tokenizer.Encode(text))
		if !slices.Equal(ids, golden) {
			t.Fatalf("%q: %v, not %v", text, ids, golden)
		}
		// The text itself may come back normalised (NFC), as Qwen's tokenizer has it.
		back := value[[]byte](t)(tokenizer.Decode(ids))
		if again := value[[]uint32](t)(tokenizer.Encode(string(back))); !slices.Equal(again, ids) {
			t.Fatalf("%q came back as %q", text, back)
		}
		checked++
	}
	must(t, lines.Err())
	if checked < 100 {
		t.Fatalf("only %d lines were checked", checked)
	}
}

func TestTokenizerFlagsAndParts(t *testing.T) {
	tokenizer := value[*Tokenizer](t)(OpenTokenizer(vocabulary))
	defer tokenizer.Close()
	info := value[TokenizerInfo](t)(tokenizer.Info())
	plain := value[[]uint32](t)(tokenizer.Encode("<|im_end|>"))
	parsed := value[[]uint32](t)(tokenizer.Encode("<|im_end|>", EncodeParseSpecials))
	if len(plain) < 2 || !slices.Equal(parsed, []uint32{info.IMEnd}) {
		t.Fatalf("%v, %v", plain, parsed)
	}
	kept := value[[]byte](t)(tokenizer.Decode(parsed, DecodeKeepSpecials))
	dropped := value[[]byte](t)(tokenizer.Decode(parsed))
	if string(kept) != "<|im_end|>" || len(dropped) != 0 {
		t.Fatalf("%q, %q", kept, dropped)
	}
	face := value[[]uint32](t)(tokenizer.Encode("𓀀"))
	half := value[[]byte](t)(tokenizer.Decode(face[:1], DecodeLossyText))
	if len(face) < 2 || !strings.Contains(string(half), "\uFFFD") {
		t.Fatalf("%v, %q", face, half)
	}
	detokenizer := value[*Detokenizer](t)(tokenizer.NewDetokenizer())
	defer detokenizer.Close()
	var text string
	for _, id := range face {
		text += value[string](t)(detokenizer.Push(id))
	}
	if text != "𓀀" || value[string](t)(detokenizer.Finish()) != "" {
		t.Fatalf("%q", text)
	}
	value[string](t)(detokenizer.Push(face[0]))
	if rest := value[string](t)(detokenizer.Finish()); rest != "\uFFFD" {
		t.Fatalf("%q", rest)
	}
	if _, err := tokenizer.TokenBytes(4_000_000_000); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if name := value[[]byte](t)(tokenizer.TokenBytes(info.IMStart)); string(name) != "<|im_start|>" {
		t.Fatalf("%q", name)
	}
	if ids := value[[]uint32](t)(tokenizer.Encode("")); len(ids) != 0 {
		t.Fatal(ids)
	}
}
