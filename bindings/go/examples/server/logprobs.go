// Log-probabilities in the two forms that OpenAI's API has: a list of objects for chats, and a list for
// each field for texts.

package main

import (
	"fmt"
	"math"
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

func chatLogprobs(tokens []qwen.TokenLogprob, _ *place) any {
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

// tokenName is a token where texts name it: as "bytes:\xe4\xbd" if it is no whole characters, as OpenAI's
// API does. So no two tokens have the same name, and each has its own number among the likeliest.
func tokenName(token qwen.Logprob) string {
	if utf8.Valid(token.Bytes) {
		return string(token.Bytes)
	}
	name := "bytes:"
	for _, one := range token.Bytes {
		name += fmt.Sprintf(`\x%02x`, one)
	}
	return name
}

// textLogprobs has null for the first token of an echo, which nothing comes before. Among the likeliest
// is always the token itself.
func textLogprobs(tokens []qwen.TokenLogprob, at *place) any {
	if len(tokens) == 0 {
		return nil
	}
	var names []string
	var values, tops []any
	var offsets []int
	for _, one := range tokens {
		names = append(names, tokenName(one.Logprob))
		offsets = append(offsets, at.pass(one.Logprob))
		if math.IsNaN(one.Logprob.Logprob) {
			values, tops = append(values, nil), append(tops, nil)
			continue
		}
		top := map[string]float64{tokenName(one.Logprob): one.Logprob.Logprob}
		for _, likely := range one.Top {
			top[tokenName(likely)] = likely.Logprob
		}
		values, tops = append(values, one.Logprob.Logprob), append(tops, top)
	}
	return map[string]any{"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
}

// A place is how far the tokens of a choice have come in its text.
type place struct {
	// Whether a token is a control token, which has a name and no text.
	control func(qwen.Logprob) bool
	// Tokens that are still the echo's. Its text is whole for itself, also where it ends in the middle
	// of a character.
	echoed     int
	characters int
	// Bytes of a character whose end has not come.
	begun []byte
}

// pass goes behind a token and returns where it begins, in characters; of one that begins in the middle
// of a character, where that does.
func (p *place) pass(token qwen.Logprob) int {
	begins := p.characters
	if !p.control(token) {
		before := len(p.begun)
		p.begun = append(p.begun, token.Bytes...)
		for len(p.begun) > 0 && utf8.FullRune(p.begun) {
			size := characterBytes(p.begun)
			p.begun = p.begun[size:]
			p.characters++
			// A character that the token does not go on with ends before it.
			if before -= size; before >= 0 {
				begins = p.characters
			}
		}
	}
	if p.echoed--; p.echoed == 0 && len(p.begun) > 0 {
		p.begun = nil
		p.characters++
	}
	return begins
}

// characterBytes is the length of the first character; of bytes that are none, how many the library
// shows as one U+FFFD: as many as could have begun a character.
func characterBytes(text []byte) int {
	if character, size := utf8.DecodeRune(text); character != utf8.RuneError || size > 1 {
		return size
	}
	size := 1
	for size < len(text) && !utf8.FullRune(text[:size+1]) {
		size++
	}
	return size
}
