//! Tokens drawn on the host although the ranks draw: who needs logits has them, nobody else's reply
//! changes, and running ahead begins anew when the last such request has ended.

use qwen::engine::GenerationParams;
use qwen::error::Error;

use crate::fake::*;

fn biased(max_tokens: usize, logit_bias: Vec<(u32, f32)>) -> GenerationParams {
    GenerationParams { ignore_eos: true, logit_bias, ..greedy(max_tokens) }
}

#[test]
fn a_bias_makes_tokens_likely_or_impossible() {
    for lab in labs() {
        let (engine, _) = lab.start();
        let reply = |params: &GenerationParams| {
            read(&engine.submit_tokens(prompt(1, 30), params, None).expect("accepted")).ids
        };
        let plain = reply(&biased(30, vec![]));
        assert!(plain.iter().any(|&id| (97..=103).contains(&id)));
        let banned = reply(&biased(30, (97..=103).map(|id| (id, -100.0)).collect()));
        assert!(banned.iter().all(|id| !(97..=103).contains(id)), "{banned:?}");
        assert_eq!(reply(&biased(5, vec![(200, 100.0)])), [200; 5]);
        assert_eq!(reply(&biased(30, vec![(200, 0.0)])), plain);
        // A control token ends the reply like any other of them.
        let ends = GenerationParams { ignore_eos: false, ..biased(5, vec![(IM_END, 100.0)]) };
        assert!(reply(&ends).is_empty());
    }
}

#[test]
fn a_bias_out_of_range_is_refused_by_name() {
    let (engine, _) = lab().start();
    let wrong = [
        vec![(5, 100.5)],
        vec![(5, f32::NAN)],
        vec![(464, 1.0)],
        (0..1025).map(|at| (at % 464, 1.0)).collect(),
    ];
    for bias in wrong {
        match engine.submit_tokens(vec![1], &biased(1, bias), None).err() {
            Some(Error::Option { key, .. }) => assert_eq!(key, "logit_bias"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn running_ahead_stops_for_logits_and_begins_anew() {
    let (engine, control) = Lab { draws: true, ..lab() }.start();
    let submit = |seed, params: &GenerationParams| {
        engine.submit_tokens(prompt(seed, 20), params, None).expect("accepted")
    };
    let (plain, logits) = (biased(200, vec![]), biased(40, vec![(5, 0.0)]));
    // Alone: each step waits for the one before it.
    let alone = read(&submit(2, &logits)).ids;
    assert_eq!((control.steps(), control.steps_ahead()), (40, 0));
    // Together: 40 steps of both at least, then ahead again.
    control.hold();
    let long = submit(1, &plain);
    let short = submit(2, &logits);
    wait_until(|| metric(&engine, "requests_submitted") == 3);
    control.release();
    assert_eq!(read(&short).ids, alone);
    assert_eq!(read(&long).ids, read(&submit(1, &plain)).ids);
    let (steps, ahead) = (control.steps() - 40, control.steps_ahead());
    assert!((steps - 60..steps - 39).contains(&ahead), "{ahead} of {steps} steps ran ahead");
}
