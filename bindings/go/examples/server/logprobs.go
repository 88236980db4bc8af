// Log-probabilities in the two forms that OpenAI's API has: a list of objects for chats, and a list for
// each field for texts.

package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// tokenText is a token as text; half a character is U+FFFD.
func tokenText(token qwen.Logprob) string { return strings.ToValidUTF8(string(token.Bytes), "\uFFFD") }

func chatToken(token qwen.Logprob) map[string]any {
	numbers := make([]int, len(token.Bytes))
	for i, one := range token.Bytes {
		numbers[i] = int(one)
	}
	return map[string]any{"token": tokenText(token), "logprob": token.Logprob, "bytes": numbers}
}

func chatLogprobs(tokens []qwen.TokenLogprob, _ *int) any {
	if len(tokens) == 0 {
		return nil
	}
	var content []any
	for _, one := range tokens {
		top := []any{}
		for _, likely := range one.Top {
			top = append(top, chatToken(likely))
		}
		object := chatToken(one.Logprob)
		object["top_logprobs"] = top
		content = append(content, object)
	}
	return map[string]any{"content": content, "refusal": nil}
}

// textLogprobs counts offset, the place in the choice's text in characters, on.
func textLogprobs(tokens []qwen.TokenLogprob, offset *int) any {
	if len(tokens) == 0 {
		return nil
	}
	var texts []string
	var values []float64
	var tops []map[string]float64
	var offsets []int
	for _, one := range tokens {
		text := tokenText(one.Logprob)
		texts = append(texts, text)
		values = append(values, one.Logprob.Logprob)
		offsets = append(offsets, *offset)
		*offset += utf8.RuneCountInString(text)
		top := map[string]float64{}
		for _, likely := range one.Top {
			top[tokenText(likely)] = likely.Logprob
		}
		tops = append(tops, top)
	}
	return map[string]any{"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
}

// askLogprobs makes the number of likeliest tokens, which texts ask for, the library's two options.
func (made *request) askLogprobs() error {
	raw, _ := made.generation.Extra["logprobs"].(json.RawMessage)
	count, err := strconv.Atoi(string(raw))
	if err != nil {
		return nil
	}
	if made.Echo {
		return badRequest("logprobs", "log-probabilities of an echoed prompt cannot be had")
	}
	made.generation.Extra["logprobs"] = true
	made.generation.Extra["top_logprobs"] = count
	return nil
}
