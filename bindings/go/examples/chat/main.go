// Asks a model one question and prints the answer as it is made: chat MODEL QUESTION
package main

import (
	"context"
	"fmt"
	"os"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

func run(model, question string) error {
	engine, err := qwen.Open(model)
	if err != nil {
		return err
	}
	defer engine.Close()
	prompt := qwen.Chat{Messages: []qwen.Message{qwen.User(question)}}
	prompt.Generation.Temperature = qwen.Ptr(0.0)
	for event, err := range engine.Stream(context.Background(), prompt) {
		if err != nil {
			return err
		}
		fmt.Print(event.Text)
	}
	fmt.Println()
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: chat MODEL QUESTION")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
