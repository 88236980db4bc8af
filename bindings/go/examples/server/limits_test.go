// What bounds the server, and what a client sees when something ends in the middle.

package main

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestTooManyRequestsAre429(t *testing.T) {
	service, url := tiny(t)
	for range cap(service.requests) {
		service.requests <- struct{}{}
	}
	for _, path := range []string{"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"} {
		if status, text := post(t, url+path, `{"prompt": "x"}`); status != http.StatusTooManyRequests || parse(t, text).Error.Code != "too_many_requests" {
			t.Error(path, status, text)
		}
	}
	// Whoever watches the server sees it still.
	for _, path := range []string{"/metrics", "/health"} {
		if response, err := http.Get(url + path); err != nil || response.StatusCode != http.StatusOK {
			t.Error(path, response.StatusCode, err)
		}
	}
	<-service.requests
	if status, text := post(t, url+"/tokenize", `{"prompt": "x"}`); status != http.StatusOK || len(service.requests) != cap(service.requests)-1 {
		t.Error(status, text)
	}
}

func TestTheTokenizerHasSoManyCallsAtOnce(t *testing.T) {
	service, url := tiny(t)
	for range cap(service.tokenizing) {
		service.tokenizing <- struct{}{}
	}
	answered := make(chan int, 2)
	for _, path := range []string{"/tokenize", "/v1/completions"} {
		go func() {
			response, err := http.Post(url+path, "application/json", strings.NewReader(`{"prompt": "x", "max_tokens": 1}`))
			if err != nil {
				answered <- 0
				return
			}
			response.Body.Close()
			answered <- response.StatusCode
		}()
	}
	select {
	case status := <-answered:
		t.Fatal("a call too many:", status)
	case <-time.After(100 * time.Millisecond):
	}
	<-service.tokenizing
	for range 2 {
		if status := <-answered; status != http.StatusOK {
			t.Error(status)
		}
	}
}

func TestEchoesHaveSoManyLogprobs(t *testing.T) {
	service, url := tiny(t)
	service.limits.logprobs = 12
	asked := map[string]bool{ // and whether it is answered
		`"logprobs": 1`:                               true,
		`"logprobs": 2`:                               false,
		`"logprobs": true, "top_logprobs": 1`:         true,
		`"logprobs": true, "top_logprobs": 2`:         false,
		`"logprobs": 0, "n": 2`:                       true,
		`"logprobs": 1, "n": 2`:                       false,
		`"logprobs": null, "n": 3`:                    true,
		`"logprobs": 20, "echo": false`:               true,
		`"logprobs": 2, "echo": true, "stream": true`: false,
	}
	for options, answered := range asked {
		status, text := post(t, url+"/v1/completions", `{"prompt": [[1, 2, 3], [4, 5, 6]], "max_tokens": 1, "echo": true, `+options+`}`)
		if answered != (status == http.StatusOK) || (!answered && (status != http.StatusBadRequest || parse(t, text).Error.Param != "logprobs")) {
			t.Errorf("%s: %d %.200s", options, status, text)
		}
	}
}

func TestOtherSitesPagesAreRefused(t *testing.T) {
	_, open := tiny(t)
	_, locked := start(t, tinyModel, "secret")
	const plain, form, own = "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"
	foreign := strings.Replace(open, "127.0.0.1", "127.0.0.1.example.com", 1)
	for _, one := range []struct {
		url, path, kind, origin string
		status                  int
	}{
		{open, "/tokenize", own, "", 200}, {open, "/tokenize", "Application/JSON", open, 200},
		{open, "/tokenize", plain, "", 415}, {open, "/detokenize", form, open, 415}, {open, "/v1/completions", "", "", 415},
		{open, "/v1/chat/completions", "application/jsonp", "", 415}, {locked, "/tokenize", plain, "", 415},
		{open, "/tokenize", own, foreign, 403}, {open, "/v1/completions", own, "null", 403}, {open, "/v1/models", "", foreign, 403},
		{open, "/tokenize", own, "http://127.0.0.1:1", 403}, {locked, "/tokenize", own, foreign, 200},
	} {
		method := http.MethodPost
		if one.path == "/v1/models" {
			method = http.MethodGet
		}
		request, _ := http.NewRequest(method, one.url+one.path, strings.NewReader(`{"prompt": "x"}`))
		request.Header.Set("Authorization", "Bearer secret")
		for header, value := range map[string]string{"Content-Type": one.kind, "Origin": one.origin} {
			if value != "" {
				request.Header.Set(header, value)
			}
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if status, text := read(t, response); status != one.status || (status != 200 && parse(t, text).Error == nil) {
			t.Errorf("%+v: %d %s", one, status, text)
		}
	}
}

func TestTokenEndpoints(t *testing.T) {
	service, url := tiny(t)
	tokens := func(body string) (ids []uint32) {
		_, text := post(t, url+"/tokenize", body)
		var made struct{ Tokens []uint32 }
		if err := json.Unmarshal([]byte(text), &made); err != nil {
			t.Fatal(text)
		}
		return made.Tokens
	}
	response, err := http.Get(url + "/tokenizer_info")
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		End string `json:"eos_token"`
	}
	if _, text := read(t, response); json.Unmarshal([]byte(text), &info) != nil || info.End == "" {
		t.Fatal(text)
	}
	end, _ := json.Marshal(info.End)
	// As lm-eval finds the token that a text begins with.
	if ids := tokens(`{"prompt": ` + string(end) + `, "add_special_tokens": false}`); len(ids) != 1 || ids[0] != service.vocab.EndOfText {
		t.Error(ids)
	}
	if ids := tokens(`{"content": ` + string(end) + `, "parse_special": false}`); len(ids) < 2 {
		t.Error(ids)
	}
	if ids := tokens(`{"messages": [{"role": "user", "content": ` + string(end) + `}]}`); len(ids) < 5 || ids[0] != service.vocab.IMStart {
		t.Error(ids)
	} else {
		for _, id := range ids {
			if id == service.vocab.EndOfText {
				t.Error("a message's content became a control token")
			}
		}
	}
	if _, text := post(t, url+"/detokenize", `{"tokens": [65, 66]}`); !strings.Contains(text, `"content":`) || !strings.Contains(text, `"prompt":`) {
		t.Error(text)
	}
}

func TestAStreamThatFailsSaysSo(t *testing.T) {
	service, url := start(t, demoModel, "")
	response, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(
		`{"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1500, "ignore_eos": true, "stream": true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	chunks, last := 0, ""
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			last = data
			if chunks++; chunks == 3 {
				service.engine.Close()
			}
		}
	}
	if made := parse(t, last); chunks < 3 || made.Error == nil || made.Error.Code == "" || made.Error.Message == "" {
		t.Fatalf("%d chunks, the last %s", chunks, last)
	}
}
