//! Log-probabilities: what the model thought, whatever was drawn, and with their tokens to the end.

use qwen::engine::{Event, GenerationParams, Request, TokenLogprobs};
use qwen::error::Error;

use crate::fake::*;

/// An f64 sum over 464 terms and one logarithm, each within a few units of 2^-52, of numbers below 16.
pub(crate) const ROUNDING: f64 = 464.0 * 16.0 * f64::EPSILON;

fn telling(max_tokens: usize, top_logprobs: u32) -> GenerationParams {
    let params = GenerationParams { ignore_eos: true, ..greedy(max_tokens) };
    GenerationParams { logprobs: true, top_logprobs, ..params }
}

/// `[ids in use]` by the definition, from the fake's own logits.
pub(crate) fn log_softmax(context: &[u32], prompt_len: usize) -> Vec<f64> {
    let logits: Vec<f64> =
        logits_after(context, prompt_len)[..464].iter().copied().map(f64::from).collect();
    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit - total.ln()).collect()
}

fn events(request: &Request) -> Vec<Event> {
    std::iter::from_fn(|| match request.next(Some(LONG)) {
        Ok(event) => Some(event),
        Err(Error::End) => None,
        Err(error) => panic!("{error}"),
    })
    .collect()
}

fn assert_what_the_model_thought(prompt: &[u32], ids: &[u32], told: &[TokenLogprobs], top: usize) {
    assert_eq!(told.len(), ids.len());
    let mut context = prompt.to_vec();
    for (id, told) in ids.iter().zip(told) {
        let wanted = log_softmax(&context, prompt.len());
        assert_eq!((told.token.id, told.top.len()), (*id, top));
        let mut order: Vec<u32> = (0..464).collect();
        order.sort_by(|a, b| wanted[*b as usize].total_cmp(&wanted[*a as usize]));
        assert_eq!(told.top.iter().map(|entry| entry.id).collect::<Vec<_>>(), order[..top]);
        for entry in told.top.iter().chain([&told.token]) {
            let difference = entry.logprob - wanted[entry.id as usize];
            assert!(difference.abs() < ROUNDING, "{} is off by {difference}", entry.id);
            let bytes = tokenizer().token_bytes(entry.id).expect("in use").to_vec();
            assert_eq!(entry.bytes, bytes);
        }
        context.push(*id);
    }
}

#[test]
fn logprobs_are_those_of_the_model_whatever_changed_the_draw() {
    for lab in labs() {
        let (engine, _) = lab.start();
        for top in [0, 1, 5, 20] {
            let mut params = telling(25, top);
            params.logit_bias = vec![(98, -50.0), (151, 5.0)];
            params.sampling.temperature = 1.7;
            params.sampling.repetition_penalty = 1.3;
            params.sampling.top_k = 50;
            let prompt = prompt(u64::from(top), 33);
            let request = engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
            let deltas = events(&request);
            let ids: Vec<u32> = deltas.iter().flat_map(|event| event.token_ids.clone()).collect();
            let told: Vec<_> = deltas.iter().flat_map(|event| event.logprobs.clone()).collect();
            assert_eq!(ids.len(), 25);
            assert_what_the_model_thought(&prompt, &ids, &told, top as usize);
        }
    }
}

#[test]
fn logprobs_stay_with_their_tokens_while_text_is_held_back_or_nobody_reads() {
    let (engine, _) = lab().start();
    let mut params = telling(40, 2);
    params.stop = vec!["never to be seen".to_string()];
    let prompt = prompt(7, 20);
    let request = engine.submit_tokens(prompt.clone(), &params, None).expect("accepted");
    wait_until(|| metric(&engine, "requests_finished") == 1);
    let all = events(&request);
    assert_eq!(all.len(), 3, "started, one delta, finished");
    assert_what_the_model_thought(&prompt, &all[1].token_ids, &all[1].logprobs, 2);
    // Read as they come, each event has as many of one as of the other.
    let request = engine.submit_tokens(prompt, &params, None).expect("accepted");
    let all = events(&request);
    assert!(all.iter().all(|event| event.token_ids.len() == event.logprobs.len()));
}

#[test]
fn who_does_not_ask_gets_none_and_a_stop_token_has_none() {
    let (engine, _) = lab().start();
    let submit = |params: &GenerationParams| {
        events(&engine.submit_tokens(prompt(1, 20), params, None).expect("accepted"))
    };
    let plain = submit(&GenerationParams { ignore_eos: true, ..greedy(10) });
    assert!(plain.iter().all(|event| event.logprobs.is_empty()));
    let stops = GenerationParams { stop_token_ids: (90..110).collect(), ..telling(10, 3) };
    assert!(submit(&stops).iter().all(|event| event.logprobs.is_empty()));
}

#[test]
fn alternatives_without_logprobs_or_too_many_are_refused() {
    let (engine, _) = lab().start();
    for params in [telling(1, 21), GenerationParams { logprobs: false, ..telling(1, 2) }] {
        match engine.submit_tokens(vec![1], &params, None).err() {
            Some(Error::Option { key, .. }) => assert_eq!(key, "top_logprobs"),
            other => panic!("{other:?}"),
        }
    }
}
