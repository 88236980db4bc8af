//! The table of option keys: name, kind, shape (see `shape`), meaning; and the check of a value.
//!
//! The setters, the JSON merge and the description that bindings are made from all read this table.
//! A checked value stays JSON until `fields` puts it where it belongs.

use serde_json::{Map, Value, json};

use super::fields::engine_values;
use super::shape::{Shape, check_tools};
use crate::engine::EngineOptions;
use crate::engine::options::{MAX_CHOICES, MAX_THREADS, MAX_TOP_LOGPROBS};
use crate::error::{Error, Result};
use crate::grammar::Format;
use crate::text::tools::ToolChoice;

/// What kind of object a set of options is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Engine,
    Generation,
    Session,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Engine, Kind::Generation, Kind::Session];

    /// The kind's name in C and JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Engine => "engine",
            Kind::Generation => "generation",
            Kind::Session => "session",
        }
    }
}

/// One option.
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// Another name for the same key, as OpenAI's API has it.
    pub(super) alias: Option<&'static str>,
    pub(super) shape: Shape,
    pub(super) about: &'static str,
}

const fn key(kind: Kind, name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { kind, name, alias: None, shape, about }
}

const fn engine(name: &'static str, shape: Shape, about: &'static str) -> Key {
    key(Kind::Engine, name, shape, about)
}

const fn generation(name: &'static str, shape: Shape, about: &'static str) -> Key {
    key(Kind::Generation, name, shape, about)
}

/// Most tokens of anything: token positions are 32-bit.
const MAX_TOKENS: i64 = u32::MAX as i64;
/// Longest time limit in milliseconds: seven weeks.
const MAX_MS: i64 = u32::MAX as i64;

/// Every key there is.
pub(super) const KEYS: &[Key] = &[
    engine(
        "backend",
        Shape::Choice(&["auto", "cpu", "cpu-reference", "cuda"]),
        "what computes: auto: a GPU that can, else the CPU; cpu; cpu-reference: plain loops; cuda: a \
         GPU or an error",
    ),
    engine(
        "devices",
        Shape::Text,
        "indices of the CUDA devices, such as 0 or 0,1, which must then be usable, each with its share of \
         the model; empty: the first, or as many as tensor_parallel says",
    ),
    engine(
        "embedding",
        Shape::Choice(&["auto", "device", "host"]),
        "where the embedding table lives with a GPU: auto: in host memory when the GPU's is short; \
         device: on the GPU; host: in pinned host memory",
    ),
    engine(
        "autotune",
        Shape::Flag,
        "with a GPU: time the algorithms of matrix products and keep the fastest; without, a request \
         alone gives the same bits in each run of a program on the same GPU and libraries",
    ),
    engine(
        "num_threads",
        Shape::Integer(0, MAX_THREADS as i64),
        "CPU threads of each rank; 0: the machine's cores divided by the ranks that compute at once",
    ),
    engine(
        "tensor_parallel",
        Shape::Integer(1, 64),
        "ranks that share the model: devices, or groups of the CPU's threads",
    ),
    engine(
        "split",
        Shape::Choice(&["tensors", "layers"]),
        "how ranks, or GPUs, share the model: tensors: a part of every matrix each, all computing at once; \
         layers: whole layers each, computing one after the other, for GPUs without a fast link or of \
         unequal memory",
    ),
    engine(
        "weights",
        Shape::Choice(&["auto", "map", "copy", "random"]),
        "on a CPU: auto: copy when memory is plentiful, else map; map: the weight files are shared and \
         must not be cut meanwhile; copy: into this process (faster); random: no files, random numbers of \
         config.json's shapes, for measuring",
    ),
    engine(
        "max_context_tokens",
        Shape::Integer(0, MAX_TOKENS),
        "longest sequence; 0: what the model allows",
    ),
    engine(
        "kv_cache_tokens",
        Shape::Integer(0, MAX_TOKENS),
        "KV cache over all requests; 0: derived from free memory",
    ),
    engine("max_batch_sequences", Shape::Integer(1, 4096), "most sequences in one step"),
    engine(
        "prefill_chunk_tokens",
        Shape::Integer(0, 1 << 20),
        "most prompt tokens in one step; bounds how long a step takes; 0: what suits the backend",
    ),
    engine(
        "max_queue_requests",
        Shape::Integer(1, 1 << 20),
        "most requests waiting; one more is refused",
    ),
    engine(
        "prefix_cache",
        Shape::Flag,
        "keep the KV pages of prompts and replies until their memory is needed: what begins like an earlier \
         request is computed from where it differs",
    ),
    engine(
        "deterministic",
        Shape::Flag,
        "a request's tokens and logprobs do not depend on what else runs or when it came, to the bit: a CPU \
         keeps that anyway; on a GPU requests then run one at a time, without prefix_cache and autotune",
    ),
    Key {
        alias: Some("max_completion_tokens"),
        ..generation("max_tokens", Shape::Integer(1, MAX_TOKENS), "most tokens of the reply")
    },
    generation("temperature", Shape::Number(0.0, 100.0), "0: always the likeliest token"),
    generation("top_k", Shape::Integer(0, MAX_TOKENS), "keep the k likeliest tokens; 0: off"),
    generation("top_p", Shape::Above(0.0, 1.0), "keep the likeliest tokens of this mass; 1: off"),
    generation("min_p", Shape::Number(0.0, 1.0), "least share of the likeliest; 0: off"),
    generation(
        "repetition_penalty",
        Shape::Number(0.01, 100.0),
        "divides the scores of ids of prompt and reply; 1: off",
    ),
    generation("presence_penalty", Shape::Number(-100.0, 100.0), "for ids of the reply; 0: off"),
    generation(
        "frequency_penalty",
        Shape::Number(-100.0, 100.0),
        "for ids of the reply, times their count; 0: off",
    ),
    generation(
        "seed",
        Shape::Integer(0, i64::MAX),
        "the same seed draws the same reply (on a GPU: of a request alone, with cache = false)",
    ),
    generation("stop", Shape::Texts, "texts that end the reply and are not part of it"),
    generation("stop_token_ids", Shape::Ids, "ids that end the reply"),
    generation("ignore_eos", Shape::Flag, "do not stop at the model's own end of a reply"),
    generation(
        "max_window_size",
        Shape::Integer(1, MAX_TOKENS),
        "history window of the chat format, in tokens; older turns are left out (by overflow = \
         truncate_oldest_turns)",
    ),
    generation(
        "overflow",
        Shape::Choice(&["truncate_oldest_turns", "stop", "error"]),
        "when a conversation outgrows the context: truncate_oldest_turns: leave out turns beyond \
         max_window_size, and so many that max_tokens, or a quarter of the context, is left for the reply; \
         stop: leave out nothing, end the reply where the context ends; error: leave out nothing, refuse \
         what does not fit with max_tokens",
    ),
    generation(
        "logit_bias",
        Shape::Biases,
        "what is added to the scores of tokens before they are drawn, by id: {\"42\": -100}",
    ),
    generation("logprobs", Shape::Flag, "tell how likely the model found each token of the reply"),
    generation(
        "top_logprobs",
        Shape::Integer(0, MAX_TOP_LOGPROBS as i64),
        "with logprobs: and so many of the likeliest tokens in its place",
    ),
    generation(
        "echo",
        Shape::Flag,
        "tell the prompt's tokens before the reply's, with logprobs those of the prompt, too; only for \
         prompts of token ids",
    ),
    generation(
        "n",
        Shape::Integer(1, MAX_CHOICES as i64),
        "replies to the same prompt, told apart by qwen_event_choice; not in sessions",
    ),
    generation(
        "priority",
        Shape::Integer(-1000, 1000),
        "higher goes first, also in place of lower ones that run already; these go on later",
    ),
    generation(
        "deadline_ms",
        Shape::Integer(0, MAX_MS),
        "most time from the submit to the end of the reply, which fails then; 0: no limit",
    ),
    generation(
        "queue_timeout_ms",
        Shape::Integer(0, MAX_MS),
        "most time from the submit to the beginning of the reply, which fails then; 0: no limit",
    ),
    generation(
        "tools",
        Shape::Tools,
        "tools that a chat offers, as OpenAI's API describes them; also their JSON as a text",
    ),
    generation(
        "tool_choice",
        Shape::ToolChoice,
        "auto: the model may call a tool; none: it must not; required: it must; {\"type\": \"function\", \
         \"function\": {\"name\": ...}}: it must call this one",
    ),
    generation(
        "response_format",
        Shape::Format,
        "what a reply must look like: an object whose type is text, json_object, json_schema (with \
         json_schema.schema), regex (with regex) or grammar (with grammar)",
    ),
    generation(
        "cache",
        Shape::Flag,
        "use the prefix cache; false: nothing is read from it and nothing left in it",
    ),
    key(Kind::Session, "system", Shape::Text, "the system message; the format's own if absent"),
];

/// The key called `name` (or so in OpenAI's API) of `kind`.
pub(super) fn find(kind: Kind, name: &str) -> Result<&'static Key> {
    KEYS.iter()
        .find(|key| key.kind == kind && (key.name == name || key.alias == Some(name)))
        .ok_or_else(|| Error::Option {
            key: name.chars().take(64).collect(),
            reason: format!("no {} option has this name", kind.name()),
        })
}

impl Key {
    /// `value`, brought to this key's shape; an error that names the key where that cannot be.
    pub(super) fn check(&self, value: Value) -> Result<Value> {
        match self.shape {
            Shape::Tools => return check_tools(value),
            Shape::ToolChoice => return ToolChoice::parse(&value).map(|_| value),
            Shape::Format => return Format::parse(&value).map(|_| value),
            _ => {}
        }
        self.shape
            .fit(value)
            .ok_or_else(|| Error::Option { key: self.name.to_string(), reason: self.shape.wish() })
    }

    /// This key for people and binding generators.
    pub(super) fn describe(&self) -> Value {
        let mut object = Map::new();
        object.insert("key".into(), json!(self.name));
        if let Some(alias) = self.alias {
            object.insert("alias".into(), json!(alias));
        }
        self.shape.describe(&mut object);
        object.insert("default".into(), default_of(self));
        object.insert("about".into(), json!(self.about));
        Value::Object(object)
    }
}

/// The default of a key; generation defaults come with each checkpoint.
fn default_of(key: &Key) -> Value {
    match key.kind {
        Kind::Engine => {
            engine_values(&EngineOptions::default()).remove(key.name).unwrap_or(Value::Null)
        }
        Kind::Generation => json!("checkpoint"),
        Kind::Session => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::MAX_ITEMS;
    use super::*;
    use crate::engine::options::MAX_STOP_BYTES;

    #[test]
    fn values_out_of_shape_are_refused_by_name() {
        let refused = [
            (Kind::Generation, "temperature", json!(-0.1)),
            (Kind::Generation, "temperature", json!("hot")),
            (Kind::Generation, "top_p", json!(1.5)),
            (Kind::Generation, "top_p", json!(0)),
            (Kind::Generation, "top_p", json!(1e-60)),
            (Kind::Generation, "max_tokens", json!(0)),
            (Kind::Generation, "max_tokens", json!(2.5)),
            (Kind::Generation, "seed", json!(-1)),
            (Kind::Generation, "stop", json!([""])),
            (Kind::Generation, "stop", json!(vec!["x"; MAX_ITEMS + 1])),
            (Kind::Generation, "stop", json!("x".repeat(MAX_STOP_BYTES + 1))),
            (Kind::Generation, "stop_token_ids", json!([4_294_967_296_u64])),
            (Kind::Generation, "ignore_eos", json!(2)),
            (Kind::Generation, "logit_bias", json!({ "5": 100.5 })),
            (Kind::Generation, "logit_bias", json!({ "-5": 1 })),
            (Kind::Generation, "logit_bias", json!({ "four": 1 })),
            (Kind::Generation, "logit_bias", json!([5, 1])),
            (Kind::Generation, "top_logprobs", json!(21)),
            (Kind::Engine, "backend", json!("abacus")),
            (Kind::Engine, "num_threads", json!(MAX_THREADS + 1)),
            (Kind::Session, "system", json!(5)),
        ];
        for (kind, name, value) in refused {
            match find(kind, name).unwrap().check(value.clone()) {
                Err(Error::Option { key, .. }) => assert_eq!(key, name),
                other => panic!("{name} = {value}: {other:?}"),
            }
        }
    }

    #[test]
    fn other_spellings_of_a_value_are_understood() {
        let check = |name, value| find(Kind::Generation, name).unwrap().check(value).unwrap();
        assert_eq!(check("max_completion_tokens", json!(5.0)), json!(5));
        assert_eq!(check("temperature", json!(1)), json!(1.0));
        assert_eq!(check("stop", json!("END")), json!(["END"]));
        assert_eq!(check("stop_token_ids", json!(5)), json!([5]));
        assert_eq!(check("ignore_eos", json!(1)), json!(true));
    }
}
