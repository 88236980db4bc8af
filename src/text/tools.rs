//! Tools as a caller describes them (OpenAI's `tools` and `tool_choice`), and the words in which
//! Qwen is told of them.
//!
//! What it is: the check of both, and the instruction of Qwen's ReAct format, byte for byte. What it
//! is not: the dialogue around it, which is `react`'s, or the reading of replies. Descriptions come
//! from outside: their number, size and nesting are limited here.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::python_json;

/// Most tools of one request.
pub const MAX_TOOLS: usize = 128;
/// Longest text of all tools together as JSON, in bytes.
pub const MAX_TOOLS_BYTES: usize = 1 << 20;
/// Deepest nesting of a tool's parameters.
pub const MAX_DEPTH: usize = 64;
/// Longest name of a tool, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The tools that a request offers to the model. Immutable; any thread may use it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    source: Value,
    names: Vec<String>,
    instruction: String,
}

/// Whether the model may, must or must not call a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// It decides.
    #[default]
    Auto,
    /// It answers: its reply is begun with the words that lead to an answer.
    None,
    /// It calls some tool: its reply is begun with the words that lead to a call.
    Required,
    /// It calls this tool: its reply is begun up to the tool's arguments.
    Named(String),
}

/// A call that the model made, as a message of the assistant remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    /// By which the tool's result names the call; may be empty.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments: a JSON text, where the model wrote one.
    pub arguments: String,
}

impl Tools {
    /// Reads `[{"type": "function", "function": {"name", "description", "parameters"}}...]`. A tool
    /// may also be the inner object alone, and may have Qwen's own fields `name_for_model`,
    /// `name_for_human` and `description_for_model`, which win over OpenAI's.
    ///
    /// # Errors
    /// `Option` with the key `tools`, naming the tool by its index and the field.
    pub fn parse(source: &Value) -> Result<Tools> {
        let wrong = |reason: String| Error::Option { key: "tools".into(), reason };
        let items = source.as_array().ok_or_else(|| wrong("wants a list of tools".into()))?;
        if items.is_empty() || items.len() > MAX_TOOLS {
            return Err(wrong(format!("wants 1 to {MAX_TOOLS} tools, has {}", items.len())));
        }
        let bytes = source.to_string().len();
        if bytes > MAX_TOOLS_BYTES {
            return Err(wrong(format!("{bytes} bytes; {MAX_TOOLS_BYTES} are allowed")));
        }
        let mut names = Vec::new();
        let mut lines = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let (name, line) =
                describe(item).map_err(|reason| wrong(format!("tools[{index}]{reason}")))?;
            if names.contains(&name) {
                return Err(wrong(format!("tools[{index}]: another one is called {name:?}")));
            }
            names.push(name);
            lines.push(line);
        }
        let instruction = instruction(&lines.join("\n\n"), &names.join(", "));
        Ok(Tools { source: source.clone(), names, instruction })
    }

    /// The JSON value these tools were read from.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// The names by which the model calls them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// `question` behind everything the model is told of its tools.
    pub(super) fn ask(&self, question: &str) -> String {
        format!("{}\n\nQuestion: {question}", self.instruction)
    }
}

impl ToolChoice {
    /// Reads `"auto"`, `"none"`, `"required"` or `{"type": "function", "function": {"name": ..}}`.
    ///
    /// # Errors
    /// `Option` with the key `tool_choice`.
    pub fn parse(value: &Value) -> Result<ToolChoice> {
        let named = || match value.get("type").and_then(Value::as_str) {
            Some("function") => value.get("function")?.get("name")?.as_str(),
            _ => None,
        };
        match value.as_str() {
            Some("auto") => return Ok(ToolChoice::Auto),
            Some("none") => return Ok(ToolChoice::None),
            Some("required") => return Ok(ToolChoice::Required),
            _ => {}
        }
        match named() {
            Some(name) => Ok(ToolChoice::Named(name.to_string())),
            None => Err(Error::Option {
                key: "tool_choice".into(),
                reason: "wants auto, none, required or {\"type\": \"function\", \"function\": \
                         {\"name\": ...}}"
                    .into(),
            }),
        }
    }

    /// The value that `parse` reads as this.
    pub fn to_json(&self) -> Value {
        match self {
            ToolChoice::Auto => json!("auto"),
            ToolChoice::None => json!("none"),
            ToolChoice::Required => json!("required"),
            ToolChoice::Named(name) => json!({ "type": "function", "function": { "name": name } }),
        }
    }

    /// `Option` with the key `tool_choice` where `tools` cannot fulfil this.
    pub fn check(&self, tools: Option<&Tools>) -> Result<()> {
        let wrong = |reason: String| Err(Error::Option { key: "tool_choice".into(), reason });
        match (self, tools) {
            (ToolChoice::Auto | ToolChoice::None, _) | (ToolChoice::Required, Some(_)) => Ok(()),
            (_, None) => wrong("there are no tools to choose from".into()),
            (ToolChoice::Named(name), Some(tools)) if !tools.names.contains(name) => {
                wrong(format!("no tool is called {name:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// Can the format carry a tool of this name? It stands alone on a line, and in a list with commas.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(fits)
}

/// A tool's name and the line that describes it; or what is wrong, behind the tool's own place.
fn describe(item: &Value) -> std::result::Result<(String, String), String> {
    let Value::Object(outer) = item else { return Err(": not an object".into()) };
    let wrapped = outer.get("function");
    let (place, fields) = match wrapped {
        Some(Value::Object(inner)) => (".function", inner),
        Some(_) => return Err(".function: not an object".into()),
        None => ("", outer),
    };
    if wrapped.is_some() {
        known_fields(outer, &["type", "function"])?;
        if outer.get("type").is_some_and(|kind| kind != "function") {
            return Err(".type: only \"function\" is known".into());
        }
    }
    describe_function(fields).map_err(|reason| format!("{place}{reason}"))
}

const FIELDS: &[&str] = &[
    "name",
    "description",
    "parameters",
    "strict",
    "name_for_model",
    "name_for_human",
    "description_for_model",
];

fn describe_function(fields: &Map<String, Value>) -> std::result::Result<(String, String), String> {
    known_fields(fields, FIELDS)?;
    if fields
        .get("strict")
        .is_some_and(|strict| !matches!(strict, Value::Null | Value::Bool(false)))
    {
        return Err(".strict: arguments cannot be held to the schema".into());
    }
    let name = text(fields, "name")?;
    let for_model = text(fields, "name_for_model")?.or(name).unwrap_or_default();
    if !is_name(for_model) {
        return Err(format!(
            ".name: wants 1 to {MAX_NAME_BYTES} bytes of letters, digits, `_`, `-` and `.`"
        ));
    }
    let for_human = text(fields, "name_for_human")?.or(name).unwrap_or_default();
    let description = text(fields, "description")?;
    let description = text(fields, "description_for_model")?.or(description).unwrap_or_default();
    let none = json!({ "type": "object", "properties": {} });
    let parameters = fields.get("parameters").unwrap_or(&none);
    if !(parameters.is_object() || parameters.is_array()) {
        return Err(".parameters: wants a schema object, or a list in Qwen's style".into());
    }
    if depth(parameters) > MAX_DEPTH {
        return Err(format!(".parameters: nested more than {MAX_DEPTH} deep"));
    }
    let parameters = python_json::dumps(parameters);
    let line = format!(
        "{for_model}: Call this tool to interact with the {for_human} API. What is the {for_human} \
         API useful for? {description} Parameters: {parameters}"
    );
    Ok((for_model.to_string(), line))
}

fn known_fields(fields: &Map<String, Value>, known: &[&str]) -> std::result::Result<(), String> {
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) => Err(format!(": unknown field {field:?}")),
        None => Ok(()),
    }
}

fn text<'a>(
    fields: &'a Map<String, Value>,
    field: &str,
) -> std::result::Result<Option<&'a str>, String> {
    match fields.get(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!(".{field}: not a string")),
    }
}

/// How deep lists and objects are nested. The JSON parser has bounded it before.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// Qwen's ReAct instruction.
fn instruction(lines: &str, names: &str) -> String {
    format!(
        "Answer the following questions as best you can. You have access to the following APIs:\n\
         \n\
         {lines}\n\
         \n\
         Use the following format:\n\
         \n\
         Question: the input question you must answer\n\
         Thought: you should always think about what to do\n\
         Action: the action to take, should be one of [{names}]\n\
         Action Input: the input to the action\n\
         Observation: the result of the action\n\
         ... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n\
         Thought: I now know the final answer\n\
         Final Answer: the final answer to the original input question\n\
         \n\
         Begin!"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(tools: Value) -> String {
        match Tools::parse(&tools) {
            Err(Error::Option { key, reason }) if key == "tools" => reason,
            other => panic!("{tools}: {other:?}"),
        }
    }

    fn tool(fields: Value) -> Value {
        json!([{ "type": "function", "function": { "name": "a" } }, { "function": fields }])
    }

    #[test]
    fn bad_tools_are_refused_by_place() {
        assert_eq!(reason(json!({})), "wants a list of tools");
        assert_eq!(reason(json!([])), "wants 1 to 128 tools, has 0");
        assert_eq!(reason(json!([5])), "tools[0]: not an object");
        assert_eq!(reason(json!([{ "function": 5 }])), "tools[0].function: not an object");
        let kind = json!([{ "type": "browser", "function": {} }]);
        assert_eq!(reason(kind), "tools[0].type: only \"function\" is known");
        assert!(reason(tool(json!({}))).starts_with("tools[1].function.name: wants 1 to 256"));
        assert!(reason(tool(json!({ "name": "a\nb" }))).starts_with("tools[1].function.name"));
        assert_eq!(reason(tool(json!({ "name": 1 }))), "tools[1].function.name: not a string");
        assert_eq!(reason(tool(json!({ "name": "a" }))), "tools[1]: another one is called \"a\"");
        let extra = json!({ "name": "b", "colour": "red" });
        assert_eq!(reason(tool(extra)), "tools[1].function: unknown field \"colour\"");
        let strict = json!({ "name": "b", "strict": true });
        assert!(reason(tool(strict)).starts_with("tools[1].function.strict"));
        let parameters = json!({ "name": "b", "parameters": "none" });
        assert!(reason(tool(parameters)).starts_with("tools[1].function.parameters: wants"));
        let deep = (0..MAX_DEPTH).fold(json!({}), |inner, _| json!([inner]));
        let deep = json!({ "name": "b", "parameters": deep });
        assert!(reason(tool(deep)).ends_with("nested more than 64 deep"));
        let long = json!({ "name": "b", "description": "x".repeat(MAX_TOOLS_BYTES) });
        assert!(reason(tool(long)).ends_with("are allowed"));
    }

    #[test]
    fn choices_are_read_and_checked() {
        let tools = Tools::parse(&tool(json!({ "name": "b" }))).unwrap();
        let named = json!({ "type": "function", "function": { "name": "b" } });
        for value in [json!("auto"), json!("none"), json!("required"), named] {
            let choice = ToolChoice::parse(&value).unwrap();
            assert_eq!(choice.to_json(), value);
            assert_eq!(choice.check(Some(&tools)), Ok(()));
        }
        for value in [json!("any"), json!(null), json!({ "type": "function" }), json!([])] {
            assert!(ToolChoice::parse(&value).is_err(), "{value}");
        }
        assert!(ToolChoice::Named("c".into()).check(Some(&tools)).is_err());
        assert!(ToolChoice::Required.check(None).is_err());
        assert!(ToolChoice::None.check(None).is_ok());
    }
}
