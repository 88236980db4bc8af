//! Steps submitted one ahead and fed with the tokens of the step before, against the same steps one
//! by one with every token known and drawn on the host: the same tokens, penalties included.

use std::path::Path;

use qwen::batch::{Batch, Draw, FED, Output};
use qwen::model::Rank;
use qwen::model::config::ModelConfig;
use qwen::sample::{Sampler, SamplingParams, SeenTokens};
use qwen::tensor::Dtype;

use crate::checkpoint::{Shape, write};
use crate::common::Random;
use crate::device::gpu;
use crate::model::{Script, on_gpu};

const VOCAB: usize = 520;
const PROMPTS: [usize; 3] = [40, 70, 9];

/// Greedy, with penalties so strong that a miscounted token shows.
fn params() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.3,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        seed: 0,
    }
}

/// Tokens each sequence computes in each step: prompts in parts, and sequences that pause, so that a
/// row is fed from another row.
fn schedule() -> Vec<[usize; 3]> {
    let mut steps = vec![[40, 30, 0], [1, 40, 0], [1, 1, 9], [1, 1, 1]];
    steps.extend((0..40).map(|n| [usize::from(n % 5 != 1), usize::from(n % 7 != 3), 1]));
    steps
}

/// Which sequences have a row in a step of `counts`, in order.
fn present(counts: &[usize; 3]) -> Vec<usize> {
    (0..3).filter(|&sequence| counts[sequence] > 0).collect()
}

/// Step by step: `tokens[sequence]` grows to prompt and reply.
fn one_by_one(rank: &mut dyn Rank, script: &mut Script) {
    let mut logits = Vec::new();
    for counts in schedule() {
        let batch = script.step(&counts);
        rank.forward(&batch, &mut logits).expect("a step");
        let rows = logits.chunks_exact_mut(VOCAB);
        for (sequence, row) in present(&counts).into_iter().zip(rows) {
            let (tokens, done) = &mut script.sequences[sequence];
            if *done < tokens.len() {
                continue; // Its prompt goes on.
            }
            let seen = seen_of(tokens, PROMPTS[sequence]);
            let position = tokens.len() as u64;
            tokens.push(Sampler::new().sample(row, &params(), &seen, position).expect("finite"));
        }
    }
}

fn seen_of(tokens: &[u32], prompt: usize) -> SeenTokens {
    let mut seen = SeenTokens::from_prompt(&tokens[..prompt]);
    tokens[prompt..].iter().for_each(|id| seen.push_reply(*id));
    seen
}

/// Says how the tokens after the rows of `batch` are drawn; `known[i]` are the tokens the host knows
/// of the i-th of them, and the length of its prompt.
fn add_draws(batch: &mut Batch, known: &[(&[u32], usize)]) {
    let p = params();
    for (tokens, prompt) in known {
        let seen_start = batch.seen.len();
        batch.seen.extend(seen_of(tokens, (*prompt).min(tokens.len())).iter());
        batch.draws.push(Draw {
            temperature: p.temperature,
            top_p: p.top_p,
            repetition_penalty: p.repetition_penalty,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            seen_start: seen_start as u32,
            seen_count: (batch.seen.len() - seen_start) as u32,
            ..Draw::default()
        });
    }
}

/// One step ahead: the tokens each step draws, one a sequence that is present.
fn ahead(rank: &mut dyn Rank, script: &mut Script) -> Vec<Vec<u32>> {
    let (mut drawn, mut output) = (Vec::new(), Output::default());
    let mut on_their_way = 0;
    let mut before: Vec<usize> = Vec::new();
    for counts in schedule() {
        let starts: Vec<usize> = script.sequences.iter().map(|(_, done)| *done).collect();
        let mut batch = script.step(&counts);
        let here = present(&counts);
        let mut known = Vec::new();
        for (index, &sequence) in here.iter().enumerate() {
            let (tokens, done) = &script.sequences[sequence];
            let fed = before.iter().position(|&other| other == sequence);
            let fed = fed.filter(|_| starts[sequence] >= PROMPTS[sequence]);
            if let Some(row) = fed {
                batch.token_ids[batch.cu_seqlens[index] as usize] = FED | row as u32;
            }
            let known_len = if fed.is_some() { *done - 1 } else { *done };
            known.push((&tokens[..known_len], PROMPTS[sequence]));
        }
        add_draws(&mut batch, &known);
        rank.submit(&batch).expect("a step");
        on_their_way += 1;
        if on_their_way == 2 {
            rank.collect(&mut output).expect("its tokens");
            drawn.push(output.tokens.clone());
            on_their_way = 1;
        }
        before = here;
    }
    rank.collect(&mut output).expect("the last tokens");
    drawn.push(output.tokens);
    drawn
}

/// Draws of steps one ahead, on what `load` makes of a checkpoint, against draws one by one on the same.
pub(crate) fn check(load: impl Fn(&Path, Dtype) -> Box<dyn Rank>) {
    let mut random = Random::from_env();
    let shape = Shape {
        layers: 4,
        hidden: 512,
        heads: 4,
        width: 288,
        vocab: VOCAB,
        dtype: Dtype::Bf16,
        stretched: false,
    };
    let folder = std::env::temp_dir().join(format!(
        "qwen-cuda-fed-{}-{:x}",
        std::process::id(),
        random.bits()
    ));
    write(&folder, &mut random, &shape);
    let prompts =
        PROMPTS.map(|len| -> Vec<u32> { (0..len).map(|_| random.below(VOCAB) as u32).collect() });
    let fresh = || Script { sequences: prompts.iter().map(|ids| (ids.clone(), 0)).collect() };
    let mut script = fresh();
    one_by_one(&mut *load(&folder, Dtype::Bf16), &mut script);
    let mut known = fresh();
    for (to, (tokens, _)) in known.sequences.iter_mut().zip(&script.sequences) {
        to.0.clone_from(tokens);
    }
    let drawn = ahead(&mut *load(&folder, Dtype::Bf16), &mut known);
    let mut done = [0; 3];
    for (step, (counts, tokens)) in schedule().iter().zip(&drawn).enumerate() {
        for (&sequence, &token) in present(counts).iter().zip(tokens) {
            done[sequence] += counts[sequence];
            if done[sequence] < PROMPTS[sequence] {
                continue;
            }
            let want = script.sequences[sequence].0[done[sequence]];
            assert_eq!(token, want, "{random} step {step} sequence {sequence}");
        }
    }
    let replies: Vec<usize> = script.sequences.iter().map(|(ids, _)| ids.len()).collect();
    assert!(replies.iter().zip(PROMPTS).all(|(len, prompt)| *len > prompt + 30));
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn steps_fed_on_the_device_draw_the_tokens_of_steps_one_by_one() {
    let Some(device) = gpu() else { return };
    check(|folder, dtype| {
        let config = ModelConfig::open(folder).expect("config.json");
        on_gpu(&device, folder, dtype, &config)
    });
}
