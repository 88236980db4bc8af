// Embeddings, as far as the binding carries them: what they are is tested in Rust.

package qwen

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func TestEmbedHasTheStatesOfEachPooling(t *testing.T) {
	engine := openTiny(t)
	ids := []uint32{10, 20, 30}
	all := value[[]float32](t)(engine.EmbedTokens(ids, Embedding{Pooling: PoolNone}))
	last := value[[]float32](t)(engine.EmbedTokens(ids, Embedding{}))
	mean := value[[]float32](t)(engine.EmbedTokens(ids, Embedding{Pooling: PoolMean}))
	size := len(all) / 3
	if len(last) != size || len(mean) != size || !slices.Equal(last, all[2*size:]) {
		t.Fatalf("%d, %d and %d numbers", len(all), len(last), len(mean))
	}
	for i := range size {
		sum := float64(all[i]) + float64(all[size+i]) + float64(all[2*size+i])
		if mean[i] != float32(sum/3) {
			t.Fatalf("dimension %d: %v", i, mean[i])
		}
	}
	text := value[[]float32](t)(engine.Embed("some text", Embedding{Pooling: PoolMean, Normalize: true}))
	square := 0.0
	for _, x := range text {
		square += float64(x) * float64(x)
	}
	if len(text) != size || math.Abs(square-1) > 1e-6 {
		t.Fatalf("%d numbers, whose squares make %v", len(text), square)
	}
	if _, err := engine.Embed("", Embedding{}); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if _, err := engine.Embed("x", Embedding{Pooling: 9}); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
}
