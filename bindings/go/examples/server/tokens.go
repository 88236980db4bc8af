// Text to tokens and back: the endpoints, in the forms that vLLM and llama.cpp have, which evaluation
// harnesses count with.

package main

import (
	"context"
	"fmt"
	"net/http"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

// tokens calls the tokenizer. A call holds an OS thread for as long as the text is long, so there are
// as many at once as there are cores to run them.
func (s *service) tokens(ctx context.Context, call func() ([]uint32, error)) ([]uint32, error) {
	select {
	case s.tokenizing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.tokenizing }()
	return call()
}

// tokenize takes a text, in which control tokens are found by their names unless parse_special is
// false, or messages, in whose contents they never are.
func (s *service) tokenize(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Content, Prompt *string
		Messages        []message
		ParseSpecial    *bool `json:"parse_special"`
	}
	if err := decode(r.Body, &request); err != nil {
		refuse(w, err)
		return
	}
	if request.Content == nil {
		request.Content = request.Prompt
	}
	if request.Content == nil && request.Messages == nil {
		refuse(w, badRequest("prompt", "a prompt, content or messages are wanted"))
		return
	}
	ids, err := s.tokens(r.Context(), func() ([]uint32, error) {
		if request.Messages != nil {
			return s.tokenizer.RenderChat(plain(request.Messages), 0)
		}
		var flags []qwen.EncodeFlag
		if request.ParseSpecial == nil || *request.ParseSpecial {
			flags = append(flags, qwen.EncodeParseSpecials)
		}
		return s.tokenizer.Encode(*request.Content, flags...)
	})
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"tokens": ids, "count": len(ids)})
}

func (s *service) detokenize(w http.ResponseWriter, r *http.Request) {
	var request struct{ Tokens []uint32 }
	if err := decode(r.Body, &request); err != nil {
		refuse(w, err)
		return
	}
	if request.Tokens == nil {
		refuse(w, badRequest("tokens", "a list of token ids is wanted"))
		return
	}
	for _, id := range request.Tokens {
		if int64(id) >= int64(s.vocab.NumTokens) {
			refuse(w, badRequest("tokens", fmt.Sprintf("there is no token %d", id)))
			return
		}
	}
	text, err := s.tokenizer.Decode(request.Tokens, qwen.DecodeKeepSpecials, qwen.DecodeLossyText)
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{"content": string(text), "prompt": string(text)})
}

// tokenizerInfo names the control tokens. A text has no token before it.
func (s *service) tokenizerInfo(w http.ResponseWriter, _ *http.Request) {
	end, err := s.tokenizer.TokenBytes(s.vocab.EndOfText)
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, http.StatusOK, map[string]any{
		"tokenizer_class": "QWenTokenizer", "vocab_size": s.vocab.NumTokens,
		"eos_token": string(end), "bos_token": nil, "add_bos_token": false,
	})
}

// isControl says whether a token is a control token, whose name is no part of a text.
func (s *service) isControl(token qwen.Logprob) bool {
	if len(token.Bytes) < 2 || token.Bytes[0] != '<' || token.Bytes[1] != '|' {
		return false
	}
	text, err := s.tokenizer.Decode([]uint32{token.ID})
	return err == nil && len(text) == 0
}

// beginning is the place of a choice's first token.
func (s *service) beginning(one *choice) *place {
	return &place{control: s.isControl, echoed: one.echoed}
}
