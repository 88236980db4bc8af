//! What one engine for many is worth on this machine's CPU: the time to the first token of 32 requests that
//! share a system message of 2,000 tokens, with the prefix cache and without it; and 32 chats at once
//! beside the same one at a time. `cargo bench --bench serving`; `QWEN_BENCH_MODEL` names another
//! checkpoint folder.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use qwen::engine::{Engine, EngineOptions, EventKind, GenerationParams};
use qwen::text::chat::{Message, Role};
use qwen::text::tokenizer::Specials;

const REQUESTS: usize = 32;
const SYSTEM_TOKENS: usize = 2000;
const SHARED_REPLY_TOKENS: usize = 8;
const CHAT_REPLY_TOKENS: usize = 64;

fn main() {
    let folder = std::env::var("QWEN_BENCH_MODEL").unwrap_or("demo/chat-model".to_string());
    let folder = PathBuf::from(folder);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!("{threads} threads, {}, load {}", folder.display(), load.trim());
    let (with, shared) = shared_prompt(&folder, true);
    let (without, alone) = shared_prompt(&folder, false);
    assert_eq!(shared, alone, "the prefix cache changes replies");
    println!("median with the cache: {:.1} times sooner", without / with);
    chats(&folder);
}

fn open(folder: &std::path::Path, prefix_cache: bool) -> Engine {
    let options = EngineOptions {
        backend: "cpu".to_string(),
        kv_cache_tokens: 2 * REQUESTS * SYSTEM_TOKENS,
        max_batch_sequences: REQUESTS,
        prefix_cache,
        ..EngineOptions::default()
    };
    Engine::open(folder, &options, None, &mut |_| true).expect("an engine")
}

fn params(engine: &Engine, max_tokens: usize) -> GenerationParams {
    let mut params = engine.generation_defaults();
    params.sampling.temperature = 0.0;
    (params.max_tokens, params.ignore_eos) = (max_tokens, true);
    params
}

/// About so many tokens of rules.
fn rules(engine: &Engine, num_tokens: usize) -> String {
    let line =
        |n: usize| format!("Rule {n}: answer question {n} politely, in one short sentence. ");
    let len = |text: &str| engine.tokenizer().encode(text, Specials::AsText).len();
    let per_line = len(&line(100));
    (100..100 + num_tokens / per_line).map(line).collect()
}

/// A chat's tokens, and how long its first one took.
fn chat(engine: &Engine, messages: &[Message], max_tokens: usize) -> (Vec<u32>, Duration) {
    let start = Instant::now();
    let request = engine.submit_chat(messages, &params(engine, max_tokens), None);
    let request = request.expect("accepted");
    let (mut tokens, mut first) = (Vec::new(), None);
    loop {
        let event = request.next(None).expect("an event");
        if event.kind == EventKind::Delta {
            first.get_or_insert(start.elapsed());
            tokens.extend(event.token_ids);
        }
        assert_eq!(event.error, None);
        if event.finish.is_some() {
            return (tokens, first.expect("a first token"));
        }
    }
}

/// All of `chats` at once, each on a thread of its own.
fn together(
    engine: &Engine,
    chats: &[Vec<Message>],
    max_tokens: usize,
) -> Vec<(Vec<u32>, Duration)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = chats
            .iter()
            .map(|messages| scope.spawn(move || chat(engine, messages, max_tokens)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a reply")).collect()
    })
}

/// Median seconds to the first token, and the replies.
fn shared_prompt(folder: &std::path::Path, prefix_cache: bool) -> (f64, Vec<Vec<u32>>) {
    let engine = open(folder, prefix_cache);
    let system = Message::new(Role::System, rules(&engine, SYSTEM_TOKENS));
    let ask = |n: usize| {
        vec![
            system.clone(),
            Message::new(Role::User, format!("Question {n}: what is {n} plus one?")),
        ]
    };
    let chats: Vec<Vec<Message>> = (0..REQUESTS).map(ask).collect();
    let start = Instant::now();
    let replies = together(&engine, &chats, SHARED_REPLY_TOKENS);
    let took = start.elapsed().as_secs_f64();
    let mut firsts: Vec<f64> = replies.iter().map(|(_, first)| first.as_secs_f64()).collect();
    firsts.sort_by(f64::total_cmp);
    let (median, p90) = (firsts[REQUESTS / 2], firsts[REQUESTS * 9 / 10]);
    let metrics = engine.metrics();
    let told = &metrics["histograms"]["time_to_first_token_seconds"];
    let (sum, count) = (told["sum"].as_f64().expect("a sum"), told["count"].as_f64());
    println!(
        "prefix cache {}: first token median {median:.2} s, p90 {p90:.2} s, mean {:.2} s (histogram \
         {:.2} s); {} prompt tokens, {} computed in all, {took:.1} s",
        if prefix_cache { "on " } else { "off" },
        firsts.iter().sum::<f64>() / REQUESTS as f64,
        sum / count.expect("a count"),
        metrics["prompt_tokens"],
        metrics["computed_tokens"],
    );
    (median, replies.into_iter().map(|(tokens, _)| tokens).collect())
}

fn chats(folder: &std::path::Path) {
    let engine = open(folder, false);
    let ask =
        |n: usize| vec![Message::new(Role::User, format!("Tell me a story about {n} trees."))];
    let chats: Vec<Vec<Message>> = (0..REQUESTS).map(ask).collect();
    let tokens = (REQUESTS * CHAT_REPLY_TOKENS) as f64;
    // The first tokens warm up what is lazy.
    chat(&engine, &chats[0], 4);
    let start = Instant::now();
    let one_by_one: Vec<_> =
        chats.iter().map(|messages| chat(&engine, messages, CHAT_REPLY_TOKENS).0).collect();
    let serial = tokens / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let at_once = together(&engine, &chats, CHAT_REPLY_TOKENS);
    let batched = tokens / start.elapsed().as_secs_f64();
    let at_once: Vec<_> = at_once.into_iter().map(|(tokens, _)| tokens).collect();
    assert_eq!(one_by_one, at_once, "a batch changes replies");
    println!(
        "{REQUESTS} chats of {CHAT_REPLY_TOKENS} tokens: one at a time {serial:.0} tokens/s, at once \
         {batched:.0} tokens/s: {:.1} times",
        batched / serial
    );
}
