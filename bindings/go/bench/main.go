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
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// cpu is the CPU time of all threads but the library's own.
func cpu() (total time.Duration) {
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		log.Fatal(err)
	}
	for _, task := range tasks {
		name, err1 := os.ReadFile(task + "/comm")
		spent, err2 := os.ReadFile(task + "/schedstat")
		if err1 != nil || err2 != nil || strings.HasPrefix(string(name), "qwen-") {
			continue
		}
		nanoseconds, err := strconv.ParseInt(strings.Fields(string(spent))[0], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		total += time.Duration(nanoseconds)
	}
	return total
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

// all follows so many streams at once.
func all(engine *qwen.Engine, streams, length int) (tokens int) {
	counts := make([]int, streams)
	var group sync.WaitGroup
	for i := range streams {
		group.Add(1)
		go func() {
			defer group.Done()
			counts[i] = follow(engine, length)
		}()
	}
	group.Wait()
	for _, count := range counts {
		tokens += count
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
	all(engine, streams, length) // for what only the first time costs
	wall, used := time.Now(), cpu()
	tokens := all(engine, streams, length)
	elapsed, spent := time.Since(wall), cpu()-used
	each := func(span time.Duration) int64 { return span.Nanoseconds() / int64(tokens) }
	fmt.Println(each(elapsed), each(spent), tokens)
}
