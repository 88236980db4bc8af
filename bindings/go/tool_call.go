// Calls of tools, as the model makes them.

package qwen

// #include "shim.h"
import "C"

import (
	"encoding/json"
	"unsafe"
)

// A ToolCall is a tool that the model calls. Nothing has checked it against the tools that there are.
type ToolCall struct {
	// What the result names; the same in all events of a reply.
	ID string
	// The tool, by the model's word: it may be one that was not offered.
	Name string
	// All arguments, on an EventToolCall.
	Arguments string
	// What they are, on an EventToolCall; 0 otherwise.
	Form ArgumentsForm
}

type toolFunction struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

type toolCallJSON struct {
	ID       string       `json:"id"`
	Type     string       `json:"type"`
	Function toolFunction `json:"function"`
}

// MarshalJSON writes the call as messages have it.
func (c ToolCall) MarshalJSON() ([]byte, error) {
	return json.Marshal(toolCallJSON{c.ID, "function", toolFunction{c.Name, c.Arguments}})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (c *ToolCall) UnmarshalJSON(text []byte) error {
	var read toolCallJSON
	err := json.Unmarshal(text, &read)
	*c = ToolCall{ID: read.ID, Name: read.Function.Name, Arguments: read.Function.Arguments}
	return err
}

func toolCallOf(view *C.qwen_go_event) *ToolCall {
	if view.tool_id_len == 0 {
		return nil
	}
	return &ToolCall{
		ID:        copyText(view.tool_id, view.tool_id_len),
		Name:      copyText(view.tool_name, view.tool_name_len),
		Arguments: copyText(view.tool_arguments, view.tool_arguments_len),
		Form:      ArgumentsForm(view.tool_form),
	}
}

func copyText(text *C.char, length C.uint64_t) string {
	return string(unsafe.Slice((*byte)(unsafe.Pointer(text)), int(length)))
}
