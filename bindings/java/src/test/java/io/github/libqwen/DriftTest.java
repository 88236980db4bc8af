// What must not drift apart: versions, the calls of qwen.h and those of the glue, snippets and programs.
// That the generated files are the library's is checked by generate.py itself.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

class DriftTest {
    /** Functions that the glue has no use for, and why. */
    private static final Map<String, String> NOT_CALLED = Map.of(
            "qwen_options_set_i64", "options cross as one JSON text",
            "qwen_options_set_f64", "the same",
            "qwen_options_set_str", "the same",
            "qwen_request_next", "a call that waits holds a thread; events come through the engine's queue",
            "qwen_request_run", "the same",
            "qwen_event_free", "events come in lists",
            "qwen_event_logprobs_json", "qwen_event_logprob has the same, without JSON");

    private static String all(Path folder, String glob) throws IOException {
        try (var files = Files.newDirectoryStream(folder, glob)) {
            StringBuilder text = new StringBuilder();
            files.forEach(path -> text.append(read(path)).append('\n'));
            return text.toString();
        }
    }

    @Test
    void everyFunctionOfTheHeaderIsCalled() throws IOException {
        String glue = all(ROOT.resolve("bindings/java/src/main/c"), "*.c");
        List<String> declared = Pattern.compile("^[a-z].*?\\b(qwen_[a-z0-9_]+)\\(", Pattern.MULTILINE)
                .matcher(read(ROOT.resolve("include/qwen.h"))).results().map(found -> found.group(1)).toList();
        assertTrue(declared.size() > 60, declared.toString());
        for (String name : declared) {
            boolean called = Pattern.compile("\\b" + name + "\\b[(,)]").matcher(glue).find();
            assertEquals(!NOT_CALLED.containsKey(name), called, name);
        }
    }

    @Test
    void everyNativeFunctionIsThere() throws IOException {
        String glue = all(ROOT.resolve("bindings/java/src/main/c"), "*.c");
        var declared = java.util.Arrays.stream(Native.class.getDeclaredMethods())
                .filter(method -> java.lang.reflect.Modifier.isNative(method.getModifiers()))
                .map(java.lang.reflect.Method::getName).collect(Collectors.toSet());
        var defined = Pattern.compile("^NATIVE\\(\\w+, (\\w+)\\)", Pattern.MULTILINE).matcher(glue).results()
                .map(found -> found.group(1)).collect(Collectors.toSet());
        assertEquals(declared, defined);
    }

    @Test
    void theVersionIsCargos() {
        MatchResult cargo = Pattern.compile("\\[package\\][^\\[]*?\nversion = \"(.*)\"").matcher(read(ROOT.resolve("Cargo.toml")))
                .results().findFirst().orElseThrow();
        assertEquals(cargo.group(1), Qwen.version());
        assertEquals(cargo.group(1), System.getProperty("qwen.version"), "the jar's version: run `make java-test`");
    }

    private static String flat(String code) {
        return code.lines().map(String::strip).collect(Collectors.joining("\n"));
    }

    /** The programs are compiled, and run, by the tests. */
    @Test
    void snippetsAreOfProgramsThatCompile() throws IOException {
        String programs = flat(all(ROOT.resolve("bindings/java/examples"), "*.java")
                + all(ROOT.resolve("bindings/java/src/test/java/io/github/libqwen"), "ExamplesTest.java"));
        for (String page : List.of("bindings/java/README.md", "README.md")) {
            String[] fences = read(ROOT.resolve(page)).split("\n```java\n");
            assertTrue(fences.length > 1, page + " shows no Java");
            for (int i = 1; i < fences.length; i++) {
                String snippet = fences[i].substring(0, fences[i].indexOf("\n```"));
                assertTrue(programs.contains(flat(snippet)), page + ": no program has this code:\n" + snippet);
            }
        }
    }
}
