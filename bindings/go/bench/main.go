// What a streamed token costs in Go: the twin of benches/stream.c, with the same arguments and the
// same output. One goroutine ranges over each stream.
//
//	bench MODEL STREAMS TOKENS
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

func cpu() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		log.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// follow reads a stream to its end and counts its tokens.
func follow(engine *qwen.Engine, length int) (tokens int) {
	chat := qwen.Chat{
		Messages: []qwen.Message{qwen.User("hello")},
		Generation: qwen.Generation{
			MaxTokens: qwen.Ptr(length), IgnoreEOS: qwen.Ptr(true), Temperature: qwen.Ptr(0.0),
		},
	}
	for event, err := range engine.Stream(context.Background(), chat) {
		if err != nil {
			log.Fatal(err)
		}
		tokens += len(event.Tokens)
	}
	return tokens
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: bench MODEL STREAMS TOKENS")
	}
	streams, err1 := strconv.Atoi(os.Args[2])
	length, err2 := strconv.Atoi(os.Args[3])
	if err1 != nil || err2 != nil {
		log.Fatal("STREAMS and TOKENS are numbers")
	}
	engine, err := qwen.Open(os.Args[1], qwen.WithNumThreads(1), qwen.WithKVCacheTokens(262144),
		qwen.WithMaxContextTokens(4096), qwen.WithMaxBatchSequences(1024))
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	wall, used := time.Now(), cpu()
	counts := make([]int, streams)
	var all sync.WaitGroup
	for i := range streams {
		all.Add(1)
		go func() {
			defer all.Done()
			counts[i] = follow(engine, length)
		}()
	}
	all.Wait()
	elapsed, spent := time.Since(wall), cpu()-used
	tokens := 0
	for _, count := range counts {
		tokens += count
	}
	each := func(span time.Duration) int64 { return span.Nanoseconds() / int64(tokens) }
	fmt.Println(each(elapsed), each(spent), tokens)
}
