// Formats of replies as vLLM's clients ask for them: structured_outputs, or one of the older guided_ keys.

package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// asFormat puts the library's response_format in the place of vLLM's keys.
func asFormat(options map[string]any) error {
	asked := map[string]json.RawMessage{}
	if raw, ok := options["structured_outputs"].(json.RawMessage); ok {
		if err := json.Unmarshal(raw, &asked); err != nil {
			return badRequest("structured_outputs", "structured_outputs is an object")
		}
		delete(options, "structured_outputs")
	}
	for key, value := range options {
		if kind, ok := strings.CutPrefix(key, "guided_"); ok {
			asked[kind], _ = value.(json.RawMessage)
			delete(options, key)
		}
	}
	for kind, value := range asked {
		if asksForNothing(value) {
			delete(asked, kind)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	if _, both := options["response_format"]; both || len(asked) > 1 {
		return badRequest("structured_outputs", "a reply has one format")
	}
	for kind, value := range asked {
		format, err := formatOf(kind, value)
		if err != nil {
			return err
		}
		options["response_format"] = format
	}
	return nil
}

func formatOf(kind string, value json.RawMessage) (map[string]any, error) {
	var choices []string
	switch kind {
	case "json":
		schema, err := asObject(value)
		return map[string]any{"type": "json_schema", "json_schema": map[string]any{"schema": schema}}, err
	case "json_object":
		return map[string]any{"type": "json_object"}, nil
	case "regex", "grammar":
		return map[string]any{"type": kind, kind: value}, nil
	case "choice":
		if err := json.Unmarshal(value, &choices); err != nil {
			return nil, badRequest("structured_outputs", "choice is a list of texts")
		}
		for i, text := range choices {
			choices[i] = regexp.QuoteMeta(text)
		}
		return map[string]any{"type": "regex", "regex": strings.Join(choices, "|")}, nil
	}
	return nil, badRequest("structured_outputs", fmt.Sprintf("no format %q is known: json, json_object, regex, choice or grammar", kind))
}

// asObject is a schema that may be written as a text.
func asObject(value json.RawMessage) (json.RawMessage, error) {
	var text string
	if json.Unmarshal(value, &text) != nil {
		return value, nil
	}
	if !json.Valid([]byte(text)) {
		return nil, badRequest("structured_outputs", "the schema is not JSON")
	}
	return json.RawMessage(text), nil
}
