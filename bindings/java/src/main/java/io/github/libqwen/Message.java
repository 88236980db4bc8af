// Messages of a conversation.

package io.github.libqwen;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * One message of a conversation.
 *
 * @param role system, user, assistant or tool
 * @param content the text
 * @param toolCalls the tool that an assistant's message calls: one at most
 * @param toolCallId which call a tool's message answers; empty in other messages
 */
public record Message(String role, String content, List<ToolCall> toolCalls, String toolCallId) {
    /**
     * A message with a copy of the list.
     *
     * @param role system, user, assistant or tool
     * @param content the text
     * @param toolCalls the tool that it calls
     * @param toolCallId the call that it answers
     */
    public Message {
        toolCalls = List.copyOf(toolCalls);
    }

    /**
     * A system message.
     *
     * @param content the text
     * @return the message
     */
    public static Message system(String content) {
        return new Message("system", content, List.of(), "");
    }

    /**
     * A user's message.
     *
     * @param content the text
     * @return the message
     */
    public static Message user(String content) {
        return new Message("user", content, List.of(), "");
    }

    /**
     * A reply of the model.
     *
     * @param content the text
     * @return the message
     */
    public static Message assistant(String content) {
        return new Message("assistant", content, List.of(), "");
    }

    /**
     * A reply of the model that calls a tool.
     *
     * @param content what it said before
     * @param call the call
     * @return the message
     */
    public static Message assistant(String content, ToolCall call) {
        return new Message("assistant", content, List.of(call), "");
    }

    /**
     * The result of a tool that the model called.
     *
     * @param call the call
     * @param content the result
     * @return the message
     */
    public static Message toolResult(ToolCall call, String content) {
        return new Message("tool", content, List.of(), call.id());
    }

    static byte[] toJson(List<Message> messages) {
        List<Object> all = new ArrayList<>();
        for (Message message : messages) {
            Text.check("messages[" + all.size() + "]", message.content);
            Map<String, Object> one = new LinkedHashMap<>();
            one.put("role", message.role);
            one.put("content", message.content);
            if (!message.toolCalls.isEmpty()) {
                one.put("tool_calls", message.toolCalls.stream().map(ToolCall::toJson).toList());
            }
            if (!message.toolCallId.isEmpty()) {
                one.put("tool_call_id", message.toolCallId);
            }
            all.add(one);
        }
        return Text.bytes("messages", Json.write(all));
    }

    static List<Message> ofJson(byte[] json) {
        List<Message> messages = new ArrayList<>();
        for (Object one : (List<?>) Json.parse(Text.of(json))) {
            Fields fields = Fields.of(one);
            List<ToolCall> calls = fields.listOf("tool_calls").stream().map(ToolCall::ofJson).toList();
            messages.add(new Message(fields.textOf("role"), fields.textOf("content"), calls,
                    fields.textOf("tool_call_id")));
        }
        return messages;
    }
}
