//! What an option's value may be: type and range, the check of a JSON value against them, and how they
//! are described to people and binding generators. `keys` says which option has which.

use serde_json::{Map, Value, json};

use crate::engine::options::{MAX_BIAS, MAX_BIASES, MAX_STOP_BYTES};
use crate::error::Result;
use crate::text::tools::Tools;

/// Longest text an option holds, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most items of a list.
pub(super) const MAX_ITEMS: usize = 64;

/// Type and range of a key's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// A whole number from `.0` to `.1`.
    Integer(i64, i64),
    /// A number from `.0` to `.1`.
    Number(f64, f64),
    /// A number above `.0` and at most `.1`.
    Above(f64, f64),
    /// true or false.
    Flag,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// A list of stop texts, none empty; a text alone is a list of one.
    Texts,
    /// A list of token ids; an id alone is a list of one.
    Ids,
    /// OpenAI's list of tools; or its JSON as a text.
    Tools,
    /// OpenAI's choice of a tool.
    ToolChoice,
    /// OpenAI's format of a reply.
    Format,
    /// An object of token ids and numbers from `-MAX_BIAS` to `MAX_BIAS`.
    Biases,
}

impl Shape {
    pub(super) fn fit(self, value: Value) -> Option<Value> {
        match self {
            Shape::Integer(low, high) => {
                whole(&value).filter(|n| (low..=high).contains(n)).map(Value::from)
            }
            Shape::Number(low, high) => {
                value.as_f64().filter(|n| (low..=high).contains(n)).map(Value::from)
            }
            // The engine computes in f32, where a tiny number is 0.
            Shape::Above(low, high) => {
                value.as_f64().filter(|&n| n as f32 > low as f32 && n <= high).map(Value::from)
            }
            Shape::Flag => flag(&value).map(Value::from),
            Shape::Choice(choices) => {
                value.as_str().filter(|text| choices.contains(text)).map(Value::from)
            }
            Shape::Text => Some(value).filter(|value| short_text(value, 0, MAX_TEXT_BYTES)),
            Shape::Texts => list(value, |value| short_text(value, 1, MAX_STOP_BYTES)),
            Shape::Ids => {
                list(value, |value| value.as_u64().is_some_and(|id| u32::try_from(id).is_ok()))
            }
            Shape::Biases => Some(value).filter(are_biases),
            // These are checked by `check`, which can say more.
            Shape::Tools | Shape::ToolChoice | Shape::Format => Some(value),
        }
    }

    /// What a value should have been.
    pub(super) fn wish(self) -> String {
        match self {
            Shape::Integer(low, high) => format!("wants a whole number from {low} to {high}"),
            Shape::Number(low, high) => format!("wants a number from {low} to {high}"),
            Shape::Above(low, high) => format!("wants a number above {low}, at most {high}"),
            Shape::Flag => "wants true or false".to_string(),
            Shape::Choice(choices) => format!("wants one of: {}", choices.join(", ")),
            Shape::Text => format!("wants a text of at most {MAX_TEXT_BYTES} bytes"),
            Shape::Texts => {
                format!("wants at most {MAX_ITEMS} texts of 1 to {MAX_STOP_BYTES} bytes")
            }
            Shape::Ids => format!("wants at most {MAX_ITEMS} token ids"),
            Shape::Tools | Shape::ToolChoice | Shape::Format => "wants JSON".to_string(),
            Shape::Biases => format!(
                "wants an object of at most {MAX_BIASES} token ids with numbers from -{MAX_BIAS} to \
                 {MAX_BIAS}"
            ),
        }
    }

    pub(super) fn describe(self, object: &mut Map<String, Value>) {
        let (name, limits) = match self {
            Shape::Integer(low, high) => ("integer", Some((json!(low), json!(high)))),
            Shape::Number(low, high) => ("number", Some((json!(low), json!(high)))),
            Shape::Above(_, high) => ("number", Some((Value::Null, json!(high)))),
            Shape::Flag => ("boolean", None),
            Shape::Choice(_) | Shape::Text => ("string", None),
            Shape::Texts => ("strings", None),
            Shape::Ids => ("integers", None),
            Shape::Tools => ("tools", None),
            Shape::ToolChoice => ("tool_choice", None),
            Shape::Format => ("response_format", None),
            Shape::Biases => ("object", Some((json!(-MAX_BIAS), json!(MAX_BIAS)))),
        };
        object.insert("type".into(), json!(name));
        if let Some((low, high)) = limits {
            match self {
                Shape::Above(low, _) => object.insert("above".into(), json!(low)),
                _ => object.insert("minimum".into(), low),
            };
            object.insert("maximum".into(), high);
        }
        if let Shape::Choice(choices) = self {
            object.insert("choices".into(), json!(choices));
        }
    }
}

/// Tools are read here already, so that what is wrong with them is told by its place.
pub(super) fn check_tools(value: Value) -> Result<Value> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::Null),
        value => value,
    };
    Tools::parse(&value).map(|_| value)
}

/// A whole number, however JSON wrote it (`3` or `3.0`).
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // Above 2^53 a float no longer says which whole number was meant.
        (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    })
}

/// A truth value; C has only numbers for it.
fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| match whole(value)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    })
}

fn short_text(value: &Value, min_bytes: usize, max_bytes: usize) -> bool {
    value.as_str().is_some_and(|text| (min_bytes..=max_bytes).contains(&text.len()))
}

fn are_biases(value: &Value) -> bool {
    let fits = |(id, bias): (&String, &Value)| {
        let range = -f64::from(MAX_BIAS)..=f64::from(MAX_BIAS);
        id.parse::<u32>().is_ok() && bias.as_f64().is_some_and(|bias| range.contains(&bias))
    };
    value.as_object().is_some_and(|biases| biases.len() <= MAX_BIASES && biases.iter().all(fits))
}

fn list(value: Value, fits: impl Fn(&Value) -> bool) -> Option<Value> {
    let items = match value {
        Value::Array(items) => items,
        single => vec![single],
    };
    (items.len() <= MAX_ITEMS && items.iter().all(fits)).then_some(Value::Array(items))
}
