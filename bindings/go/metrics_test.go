// Metrics, as far as the binding carries them: what they are is tested in Rust.

package qwen

import (
	"errors"
	"strings"
	"testing"
)

func TestHistogramsAndPrometheus(t *testing.T) {
	engine := openTiny(t)
	value[*Result](t)(engine.Complete(t.Context(), ask("x", 5)))
	metrics := value[Metrics](t)(engine.Metrics())
	between := metrics.Histograms["time_between_tokens_seconds"]
	if between.Count+metrics.Histograms["time_to_first_token_seconds"].Count != metrics.GeneratedTokens ||
		between.Sum <= 0 || len(between.Counts) != len(between.Bounds)+1 {
		t.Fatalf("%+v", metrics)
	}
	text := value[string](t)(engine.Prometheus(`a "b"`))
	if !strings.Contains(text, "# TYPE qwen_time_to_first_token_seconds histogram\n") ||
		!strings.Contains(text, `qwen_requests_finished_total{model="a \"b\""} 1`+"\n") {
		t.Fatal(text)
	}
	if _, err := engine.Prometheus("\xff"); !errors.Is(err, ErrUTF8) {
		t.Fatal(err)
	}
	if text := value[string](t)(engine.Prometheus("")); !strings.Contains(text, "\nqwen_requests_finished_total 1\n") {
		t.Fatal(text)
	}
}
