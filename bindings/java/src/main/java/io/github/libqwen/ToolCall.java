// Calls of tools, as the model makes them.

package io.github.libqwen;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;

/**
 * A tool that the model calls. Nothing has checked it against the tools that there are.
 *
 * @param id what the result names; the same in all events of a reply
 * @param name the tool, by the model's word: it may be one that was not offered
 * @param arguments all arguments, once the call is complete; empty before
 * @param form what the arguments are, once the call is complete
 */
public record ToolCall(String id, String name, String arguments, Optional<ArgumentsForm> form) {
    /**
     * A call as messages have it.
     *
     * @param id what the result names
     * @param name the tool
     * @param arguments its arguments, as JSON
     */
    public ToolCall(String id, String name, String arguments) {
        this(id, name, arguments, Optional.empty());
    }

    Map<String, Object> toJson() {
        Map<String, Object> function = new LinkedHashMap<>();
        function.put("name", name);
        function.put("arguments", arguments);
        Map<String, Object> call = new LinkedHashMap<>();
        call.put("id", id);
        call.put("type", "function");
        call.put("function", function);
        return call;
    }

    static ToolCall ofJson(Object json) {
        Fields call = Fields.of(json);
        Fields function = call.fieldsOf("function");
        return new ToolCall(call.textOf("id"), function.textOf("name"), function.textOf("arguments"));
    }
}
