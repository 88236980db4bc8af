// What sessions do beside talking: edits, forks, and states that are saved and loaded.

package qwen

import (
	"errors"
	"reflect"
	"slices"
	"testing"
)

func TestSessionsForkAreEditedSavedAndLoaded(t *testing.T) {
	engine := openTiny(t)
	session := value[*Session](t)(engine.NewSession())
	defer session.Close()
	value[*Result](t)(session.Send(t.Context(), "one", exactly(60)))
	said := value[[]Message](t)(session.Messages())

	fork := value[*Session](t)(session.Fork())
	defer fork.Close()
	value[*Result](t)(fork.Send(t.Context(), "two", exactly(5)))
	if !reflect.DeepEqual(value[[]Message](t)(session.Messages()), said) || len(value[[]Message](t)(fork.Messages())) != len(said)+2 {
		t.Fatal("a fork's turn belongs to the fork alone")
	}
	saved := value[[]byte](t)(session.Save())
	must(t, fork.Load(saved))
	if !reflect.DeepEqual(value[[]Message](t)(fork.Messages()), said) {
		t.Fatal("what is loaded is not what was saved")
	}
	damaged := slices.Clone(saved)
	damaged[len(damaged)/2] ^= 1
	for _, bad := range [][]byte{nil, damaged, saved[:len(saved)-1]} {
		if err := fork.Load(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	must(t, fork.Edit(1, "another"))
	if messages := value[[]Message](t)(fork.Messages()); messages[1].Content != "another" {
		t.Fatalf("%q", messages)
	}
	for _, index := range []int{-1, 99} {
		if err := fork.Edit(index, "x"); !errors.Is(err, ErrArg) {
			t.Errorf("message %d: %v", index, err)
		}
	}
	must(t, session.Append(User("and?")))
	result := value[*Result](t)(session.Regenerate(t.Context(), exactly(5)))
	if result.Usage.CachedTokens == 0 || result.Usage.CachedTokens >= result.Usage.PromptTokens {
		t.Errorf("the prefix cache has the conversation: %+v", result.Usage)
	}
	must(t, engine.Close())
	if _, err := session.Fork(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}
