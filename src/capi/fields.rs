//! From option values to the fields they stand for, and back. Values were checked by `keys`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::engine::{EngineOptions, GenerationParams, Overflow};
use crate::grammar::Format;
use crate::text::tools::{ToolChoice, Tools};

fn size(value: &Value) -> usize {
    value.as_u64().unwrap_or(0) as usize
}

fn real(value: &Value) -> f32 {
    value.as_f64().unwrap_or(0.0) as f32
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn biases(value: &Value) -> Vec<(u32, f32)> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(id, bias)| Some((id.parse().ok()?, real(bias)))).collect()
}

fn biases_json(biases: &[(u32, f32)]) -> Value {
    biases.iter().map(|(id, bias)| (id.to_string(), json!(short(*bias)))).collect()
}

/// Puts checked values over `options`.
pub(super) fn set_engine(options: &mut EngineOptions, values: &Map<String, Value>) {
    for (name, value) in values {
        match name.as_str() {
            "backend" => options.backend = string(value),
            "devices" => options.devices = string(value),
            "embedding" => options.embedding = string(value),
            "autotune" => options.autotune = value.as_bool().unwrap_or(true),
            "num_threads" => options.num_threads = size(value),
            "tensor_parallel" => options.tensor_parallel = size(value),
            "split" => options.split = string(value),
            "weights" => options.weights = string(value),
            "max_context_tokens" => options.max_context_tokens = size(value),
            "kv_cache_tokens" => options.kv_cache_tokens = size(value),
            "max_batch_sequences" => options.max_batch_sequences = size(value),
            "prefill_chunk_tokens" => options.prefill_chunk_tokens = size(value),
            "max_queue_requests" => options.max_queue_requests = size(value),
            "prefix_cache" => options.prefix_cache = value.as_bool().unwrap_or(true),
            "deterministic" => options.deterministic = value.as_bool().unwrap_or(false),
            other => debug_assert!(false, "engine key {other} sets nothing"),
        }
    }
}

/// Puts checked values over `params`.
pub(super) fn set_generation(params: &mut GenerationParams, values: &Map<String, Value>) {
    let sampling = &mut params.sampling;
    for (name, value) in values {
        match name.as_str() {
            "max_tokens" => params.max_tokens = size(value),
            "temperature" => sampling.temperature = real(value),
            "top_k" => sampling.top_k = size(value) as u32,
            "top_p" => sampling.top_p = real(value),
            "min_p" => sampling.min_p = real(value),
            "repetition_penalty" => sampling.repetition_penalty = real(value),
            "presence_penalty" => sampling.presence_penalty = real(value),
            "frequency_penalty" => sampling.frequency_penalty = real(value),
            "seed" => sampling.seed = value.as_u64().unwrap_or(0),
            "stop" => params.stop = value.as_array().into_iter().flatten().map(string).collect(),
            "stop_token_ids" => {
                let ids = value.as_array().into_iter().flatten();
                params.stop_token_ids = ids.map(|id| size(id) as u32).collect();
            }
            "ignore_eos" => params.ignore_eos = value.as_bool().unwrap_or(false),
            "max_window_size" => params.max_window_size = size(value),
            "tools" => params.tools = Tools::parse(value).ok().map(Arc::new),
            "response_format" => params.response_format = Format::parse(value).ok().flatten(),
            "tool_choice" => params.tool_choice = ToolChoice::parse(value).unwrap_or_default(),
            "logit_bias" => params.logit_bias = biases(value),
            "logprobs" => params.logprobs = value.as_bool().unwrap_or(false),
            "top_logprobs" => params.top_logprobs = size(value) as u32,
            "echo" => params.echo = value.as_bool().unwrap_or(false),
            "n" => params.n = size(value) as u32,
            "priority" => params.priority = value.as_i64().unwrap_or(0) as i32,
            "deadline_ms" => params.deadline_ms = value.as_u64().unwrap_or(0),
            "queue_timeout_ms" => params.queue_timeout_ms = value.as_u64().unwrap_or(0),
            "cache" => params.cache = value.as_bool().unwrap_or(true),
            "overflow" => {
                let named = Overflow::ALL.iter().find(|(_, name)| value == name);
                params.overflow = named.map_or(params.overflow, |(policy, _)| *policy);
            }
            other => debug_assert!(false, "generation key {other} sets nothing"),
        }
    }
}

/// `options` as values by key.
pub(super) fn engine_values(options: &EngineOptions) -> Map<String, Value> {
    let value = json!({
        "backend": options.backend,
        "devices": options.devices,
        "embedding": options.embedding,
        "autotune": options.autotune,
        "num_threads": options.num_threads,
        "tensor_parallel": options.tensor_parallel,
        "split": options.split,
        "weights": options.weights,
        "max_context_tokens": options.max_context_tokens,
        "kv_cache_tokens": options.kv_cache_tokens,
        "max_batch_sequences": options.max_batch_sequences,
        "prefill_chunk_tokens": options.prefill_chunk_tokens,
        "max_queue_requests": options.max_queue_requests,
        "prefix_cache": options.prefix_cache,
        "deterministic": options.deterministic,
    });
    into_map(value)
}

/// `params` as values by key.
pub(super) fn generation_values(params: &GenerationParams) -> Map<String, Value> {
    let sampling = &params.sampling;
    let value = json!({
        "max_tokens": params.max_tokens,
        "temperature": short(sampling.temperature),
        "top_k": sampling.top_k,
        "top_p": short(sampling.top_p),
        "min_p": short(sampling.min_p),
        "repetition_penalty": short(sampling.repetition_penalty),
        "presence_penalty": short(sampling.presence_penalty),
        "frequency_penalty": short(sampling.frequency_penalty),
        "seed": sampling.seed,
        "stop": params.stop,
        "stop_token_ids": params.stop_token_ids,
        "ignore_eos": params.ignore_eos,
        "max_window_size": params.max_window_size,
        "tools": params.tools.as_ref().map(|tools| tools.source()),
        "tool_choice": params.tool_choice.to_json(),
        "response_format": params.response_format.as_ref().map(Format::to_json),
        "logit_bias": biases_json(&params.logit_bias),
        "logprobs": params.logprobs,
        "top_logprobs": params.top_logprobs,
        "echo": params.echo,
        "n": params.n,
        "priority": params.priority,
        "deadline_ms": params.deadline_ms,
        "queue_timeout_ms": params.queue_timeout_ms,
        "cache": params.cache,
        "overflow": Overflow::ALL.iter().find(|(policy, _)| *policy == params.overflow).map(|(_, name)| name),
    });
    into_map(value)
}

/// The shortest decimal that reads back as `number`: 0.8 and not 0.800000011920929.
fn short(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KEYS, Kind};
    use super::super::shape::Shape;
    use super::*;
    use crate::sample::SamplingParams;

    fn params() -> GenerationParams {
        let sampling = SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.8,
            min_p: 0.0,
            repetition_penalty: 1.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 7,
        };
        let (stop, stop_token_ids) = (Vec::new(), Vec::new());
        GenerationParams {
            sampling,
            max_tokens: 512,
            stop,
            stop_token_ids,
            ignore_eos: true,
            max_window_size: 6144,
            logit_bias: Vec::new(),
            logprobs: true,
            top_logprobs: 0,
            echo: true,
            n: 1,
            priority: 0,
            deadline_ms: 0,
            queue_timeout_ms: 0,
            tools: None,
            tool_choice: ToolChoice::Auto,
            response_format: None,
            cache: true,
            overflow: Overflow::Error,
        }
    }

    /// A legal value that no default has.
    fn odd_value(shape: Shape) -> Value {
        match shape {
            Shape::Integer(..) => json!(3),
            Shape::Number(..) | Shape::Above(..) => json!(0.25),
            Shape::Flag => json!(true),
            Shape::Choice(choices) => json!(choices[1]),
            Shape::Text => json!("x"),
            Shape::Texts => json!(["x"]),
            Shape::Ids => json!([3]),
            Shape::Tools => json!([{ "type": "function", "function": { "name": "f" } }]),
            Shape::ToolChoice => json!("none"),
            Shape::Format => json!({ "type": "json_object" }),
            Shape::Biases => json!({ "3": 0.25 }),
        }
    }

    #[test]
    fn every_key_reaches_its_own_field_and_back() {
        for key in KEYS {
            let before = match key.kind {
                Kind::Engine => engine_values(&EngineOptions::default()),
                Kind::Generation => generation_values(&params()),
                Kind::Session => continue,
            };
            let is_set = before[key.name] == json!(true);
            let odd = if is_set { json!(false) } else { odd_value(key.shape) };
            let value = key.check(odd).unwrap();
            let values = Map::from_iter([(key.name.to_string(), value.clone())]);
            let after = if key.kind == Kind::Engine {
                let mut options = EngineOptions::default();
                set_engine(&mut options, &values);
                engine_values(&options)
            } else {
                let mut changed = params();
                set_generation(&mut changed, &values);
                generation_values(&changed)
            };
            assert_eq!(after[key.name], value, "{}", key.name);
            let changed = after.iter().filter(|(name, value)| before[*name] != **value).count();
            assert_eq!(changed, 1, "{} changes itself only", key.name);
        }
    }
}
