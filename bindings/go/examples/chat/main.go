// Asks a model one question and prints the answer as it is made: examples/chat.c in Go.
//
//	chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] [--temperature X] [--seed N]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

func chat(model, prompt string, generation qwen.Generation, options ...qwen.SessionOption) error {
	engine, err := qwen.Open(model)
	if err != nil {
		return err
	}
	defer engine.Close()
	session, err := engine.NewSession(options...)
	if err != nil {
		return err
	}
	defer session.Close()
	for event, err := range session.Stream(context.Background(), prompt, generation) {
		if err != nil {
			return err
		}
		if _, err := fmt.Print(event.Text); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

func main() {
	model := flag.String("model", "", "the checkpoint's folder")
	prompt := flag.String("prompt", "", "the question")
	system := flag.String("system", "", "the system message, in place of the checkpoint's own")
	maxTokens := flag.Int("max-tokens", 0, "most tokens of the answer")
	temperature := flag.Float64("temperature", 0, "0: the likeliest token, always")
	seed := flag.Int("seed", 0, "the same seed draws the same answer")
	flag.Parse()
	generation := qwen.Generation{Temperature: temperature}
	var options []qwen.SessionOption
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) {
		given[f.Name] = true
		switch f.Name {
		case "system":
			options = append(options, qwen.WithSystem(*system))
		case "max-tokens":
			generation.MaxTokens = maxTokens
		case "seed":
			generation.Seed = seed
		}
	})
	if !given["model"] || !given["prompt"] || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(1)
	}
	if err := chat(*model, *prompt, generation, options...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
