// Formats and tools, as clients meet them: what they are is tested in Rust.

package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"testing"

	qwen "github.com/libqwen/libqwen/bindings/go"
)

func TestFormatsAndTools(t *testing.T) {
	_, url := start(t, demoModel, "")
	url += "/v1/chat/completions"
	question := `"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "temperature": 0, "max_tokens": 60`
	made := ask(t, url, `{`+question+`, "response_format": {"type": "regex", "regex": "(yes|no), [0-9]{3}"}}`)
	if text := made.Choices[0].Message.Content; !regexp.MustCompile(`^(yes|no), [0-9]{3}$`).MatchString(text) {
		t.Fatalf("%q", text)
	}
	choice := regexp.MustCompile(`^(so\.so|\(no\))$`)
	for _, format := range []string{`"structured_outputs": {"choice": ["so.so", "(no)"]}`, `"guided_choice": ["so.so", "(no)"]`,
		`"guided_regex": "so\\.so|\\(no\\)", "guided_json": null`, `"structured_outputs": {"grammar": "start: \"so.so\" | \"(no)\""}`} {
		if text := ask(t, url, `{`+question+`, `+format+`}`).Choices[0].Message.Content; !choice.MatchString(text) {
			t.Errorf("%s: %q", format, text)
		}
	}
	for _, schema := range []string{`{"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"], "additionalProperties": false}`, `"{\"enum\": [{\"city\": \"Paris\"}]}"`} {
		var made struct{ City string }
		text := ask(t, url, `{`+question+`, "structured_outputs": {"json": `+schema+`}}`).Choices[0].Message.Content
		if err := json.Unmarshal([]byte(text), &made); err != nil || made.City != "Paris" {
			t.Errorf("%s: %q", schema, text)
		}
	}
	for _, format := range []string{`"structured_outputs": {"regex": "a", "choice": ["b"]}`, `"guided_regex": "a", "response_format": {"type": "json_object"}`,
		`"structured_outputs": 5`, `"structured_outputs": {"json": "{"}`, `"guided_whim": "a"`, `"guided_choice": 5`, `"guided_regex": "("`} {
		if status, text := post(t, url, `{`+question+`, `+format+`}`); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", format, status, text)
		}
	}
	// A reply that begins with the call of this tool: the model must write its arguments.
	offered := question + `, "tool_choice": {"type": "function", "function": {"name": "weather"}}, "tools": [
		{"type": "function", "function": {"name": "weather", "description": "The weather in a city.",
		 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]`
	whole := ask(t, url, `{`+offered+`}`)
	first := whole.Choices[0]
	if len(first.Message.ToolCalls) != 1 || *first.FinishReason != "tool_calls" {
		t.Fatalf("%+v", first)
	}
	call := first.Message.ToolCalls[0]
	if call.Name != "weather" || call.ID == "" || call.Arguments == "" {
		t.Fatalf("%+v", call)
	}
	var streamed []qwen.ToolCall
	reason := ""
	for _, chunk := range events(t, url, `{"stream": true, `+offered+`}`) {
		for _, choice := range chunk.Choices {
			streamed = append(streamed, choice.Delta.ToolCalls...)
			if choice.FinishReason != nil {
				reason = *choice.FinishReason
			}
		}
	}
	if len(streamed) != 1 || streamed[0].Name != "weather" || streamed[0].Arguments != call.Arguments || reason != "tool_calls" {
		t.Fatalf("%+v, %q", streamed, reason)
	}
}
