// The constants of qwen.h as Go's.

package gen

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// constants are the groups of constants that Go has: the prefix in C, the prefix in Go, their type,
// and what the type says of itself ("" where it is written by hand, or is Go's).
var constants = []struct{ c, prefix, kind, about string }{
	{"QWEN_ABI_VERSION", "abiVersion", "", ""},
	{"QWEN_E_", "Err", "Code", ""},
	{"QWEN_EVENT_", "Event", "EventKind", "An EventKind says what an [Event] is."},
	{"QWEN_FINISH_", "Finish", "FinishReason", "A FinishReason says why a reply ended; 0 where it has not."},
	{"QWEN_ARGUMENTS_", "Arguments", "ArgumentsForm", "An ArgumentsForm says what the arguments of a call are; 0 where they are not complete."},
	{"QWEN_ENCODE_", "Encode", "EncodeFlag", "An EncodeFlag changes what [Tokenizer.Encode] does."},
	{"QWEN_DECODE_", "Decode", "DecodeFlag", "A DecodeFlag changes what [Tokenizer.Decode] does."},
	{"QWEN_POOL_", "Pool", "Pooling", "A Pooling says what [Engine.Embed] makes of the states of a text's tokens."},
	{"QWEN_LOG_", "log", "int32", ""},
}

// underlying are the types of the types that are made here.
var underlying = map[string]string{
	"EventKind": "int32", "FinishReason": "int32", "ArgumentsForm": "int32", "Pooling": "int32", "EncodeFlag": "uint32", "DecodeFlag": "uint32",
}

// defines finds the constants with the comment above each.
var defines = regexp.MustCompile(`((?:/// .*\n)+)#define (QWEN_[A-Z0-9_]+) ([0-9]+)\n`)

func codesFile(header string) []byte {
	out := opening("The constants of qwen.h.")
	out.WriteString("import \"strconv\"\n\n")
	found := defines.FindAllStringSubmatch(header, -1)
	for _, group := range constants {
		if group.about != "" {
			fmt.Fprintf(out, "// %s\ntype %s %s\n\n", group.about, group.kind, underlying[group.kind])
		}
		var named []string
		out.WriteString("const (\n")
		for _, one := range found {
			rest, ok := strings.CutPrefix(one[2], group.c)
			if !ok {
				continue
			}
			comment(out, strings.ReplaceAll(one[1], "/// ", " "))
			name := group.prefix + exported(rest)
			fmt.Fprintf(out, "\t%s %s = %s\n", name, group.kind, one[3])
			named = append(named, name, strings.ToLower(rest))
		}
		out.WriteString(")\n\n")
		if underlying[group.kind] == "int32" {
			names(out, group.kind, named)
		}
	}
	return out.Bytes()
}

// names writes the String of a type; named are pairs of constant and text.
func names(out *bytes.Buffer, kind string, named []string) {
	fmt.Fprintf(out, "// String is the name in small letters.\nfunc (value %s) String() string {\n\tswitch value {\n", kind)
	for i := 0; i < len(named); i += 2 {
		fmt.Fprintf(out, "\tcase %s:\n\t\treturn %q\n", named[i], named[i+1])
	}
	fmt.Fprintf(out, "\t}\n\treturn \"%s(\" + strconv.Itoa(int(value)) + \")\"\n}\n\n", kind)
}
