//! Models divided over GPUs (`QWEN_TEST_WORLD` of them, or two), by tensors and by layers: against the plain
//! CPU reference, against the host's draws, as engines that are cancelled, run out of pages, and lose a rank.
//! Every shape here divides by four.
//!
//! Tolerances as in `model` and `gptq`: a sum over ranks is f32, and adds no rounding that counts there; what
//! is handed over is f32, too.

use std::path::Path;
use std::sync::Arc;
use std::thread::scope;
use std::time::Duration;

use qwen::backend::comm::Solo;
use qwen::backend::cpu::reference::Reference;
use qwen::backend::cuda::{Cuda, CudaSettings, Device, Group, GroupShape, QuantLimits};
use qwen::batch::{Batch, Output};
use qwen::checkpoint::shard::Division;
use qwen::engine::{Engine, EngineOptions, EventKind, Request};
use qwen::error::{Error, Result};
use qwen::model::config::ModelConfig;
use qwen::model::{Limits, Model, Placement, Rank};
use qwen::tensor::Dtype;

use crate::checkpoint::{Shape, write};
use crate::common::Random;
use crate::device::{backend, list, settings, several, world};
use crate::fed;
use crate::gptq;
use crate::model::{LIMITS, Script, allowed, compare_steps, errors, folder, try_load};
use crate::opened::{DIVIDED, Folder, options, reply};

/// How devices share a model.
#[derive(Clone, Copy)]
struct Way {
    by_layers: bool,
    /// They reach each other's memory.
    is_direct: bool,
    limits: Limits,
}

const BY_TENSORS: Way = Way { by_layers: false, is_direct: true, limits: LIMITS };
const BY_LAYERS: Way = Way { by_layers: true, ..BY_TENSORS };

/// Ranks that run the same steps, each on a thread of its own while it does.
struct Together(Vec<Box<dyn Rank>>);

impl Together {
    /// The checkpoint in `folder`, a rank on each of `devices`.
    fn load(devices: &[Device], folder: &Path, dtype: Dtype, way: Way) -> Together {
        let config = ModelConfig::open(folder).expect("config.json");
        let (world, limits) = (devices.len(), way.limits);
        let (division, max_tokens) = match way.by_layers {
            true => (Division::of_layers(config.num_layers, &vec![1; world]).expect("enough"), 0),
            false => (Division::Tensors, limits.max_tokens),
        };
        let parts = division.share(config.num_layers, 0, world).parts;
        let logits_cols = division.logits_cols(config.vocab_size, world);
        let shape = GroupShape { hidden_size: config.hidden_size, logits_cols, max_tokens };
        let contexts = devices.iter().map(|device| device.context().expect("asked"));
        let contexts = contexts.collect::<Option<Vec<_>>>().expect("room for contexts");
        let tie = if way.is_direct { Group::new } else { Group::through_host };
        let group = tie(contexts, shape).expect("a group");
        let mut sizes = crate::device::limits(config.head_dim);
        (sizes.max_tokens, sizes.max_sequences) = (limits.max_tokens, limits.max_logits_rows);
        let settings = CudaSettings {
            quantised: config.quantisation.map(|_| QuantLimits::default()),
            ..settings(dtype, sizes, (config.intermediate_size / parts, config.vocab_size))
        };
        let load = |rank| -> Result<Box<dyn Rank>> {
            let checkpoint = qwen::checkpoint::Checkpoint::open(folder)?;
            let backend = Cuda::in_group(&group, rank, settings)?;
            let place = Placement { rank, world, division: &division };
            Ok(Box::new(Model::load(backend, &checkpoint, &config, place, limits, &mut |_| true)?))
        };
        let ranks = scope(|scope| {
            let load = &load;
            let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || load(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        Together(ranks.into_iter().map(|rank| rank.expect("the model loads")).collect())
    }

    /// Does `work` with every rank at once.
    fn all(
        &mut self,
        work: impl Fn(&mut dyn Rank, &mut Output) -> Result<()> + Sync,
    ) -> Result<Output> {
        let work = &work;
        let done: Vec<Result<Output>> = scope(|scope| {
            let run = |rank: &'_ mut Box<dyn Rank>| {
                let mut output = Output::default();
                work(&mut **rank, &mut output).map(|()| output)
            };
            let threads: Vec<_> =
                self.0.iter_mut().map(|rank| scope.spawn(move || run(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let outputs = done.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(outputs.into_iter().next().expect("rank 0"))
    }
}

impl Rank for Together {
    fn submit(&mut self, batch: &Batch) -> Result<()> {
        self.all(|rank, _| rank.submit(batch)).map(drop)
    }

    fn collect(&mut self, output: &mut Output) -> Result<()> {
        *output = self.all(|rank, output| rank.collect(output))?;
        Ok(())
    }
}

#[test]
fn logits_of_several_devices_agree_with_the_reference() {
    let Some(devices) = several() else { return };
    let mut random = Random::from_env();
    for (index, (dtype, heads, dim)) in
        [(Dtype::Bf16, 4, 128), (Dtype::F16, 4, 64), (Dtype::Bf16, 20, 64), (Dtype::F16, 8, 128)]
            .into_iter()
            .enumerate()
    {
        let shape = Shape {
            layers: 4,
            hidden: heads * dim,
            heads,
            width: 288 + 32 * index,
            // Some of them do not divide evenly.
            vocab: 1000 + 3 * index,
            dtype,
            stretched: index % 2 == 1,
        };
        let folder = folder(&format!("parallel-{index}"));
        write(&folder, &mut random, &shape);
        for by_layers in [false, true] {
            let cpu = try_load(&folder, Reference::new(Arc::new(Solo), 0), LIMITS);
            // Twice by way of the host.
            let way = Way { by_layers, is_direct: index < 2, ..BY_TENSORS };
            let mut several = Together::load(&devices, &folder, dtype, way);
            let mut cpu = cpu.expect("it loads");
            compare_steps(&mut *cpu, &mut several, &mut random, &shape, allowed(&shape));
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}

#[test]
fn quantised_logits_of_several_devices_agree_with_the_reference() {
    let Some(devices) = several() else { return };
    for (name, way) in [("tensors", BY_TENSORS), ("layers", BY_LAYERS)] {
        gptq::compare_divided(name, |folder| {
            Box::new(Together::load(&devices, folder, Dtype::F16, way))
        });
    }
}

#[test]
fn several_devices_draw_the_tokens_of_steps_one_by_one() {
    let Some(devices) = several() else { return };
    for way in [BY_TENSORS, BY_LAYERS] {
        fed::check(|folder, dtype| Box::new(Together::load(&devices, folder, dtype, way)));
    }
}

/// A prompt's residual stream that takes several pieces to hand over, none of which ends with a row.
#[test]
fn long_steps_are_handed_over_whole() {
    let Some(devices) = several() else { return };
    let mut random = Random::from_env();
    let shape = Shape {
        layers: 4,
        hidden: 1152,
        heads: 9,
        width: 264,
        vocab: 1000,
        dtype: Dtype::Bf16,
        stretched: false,
    };
    let folder = folder("parallel-long");
    write(&folder, &mut random, &shape);
    let limits = Limits { max_tokens: 2048, ..LIMITS };
    let mut sizes = crate::device::limits(128);
    (sizes.max_tokens, sizes.max_sequences) = (limits.max_tokens, limits.max_logits_rows);
    let alone = backend(&devices[0], shape.dtype, sizes, (shape.width, shape.vocab));
    let mut alone = try_load(&folder, alone, limits).expect("it loads");
    let tokens = |_| ((0..500).map(|_| random.below(shape.vocab) as u32).collect(), 0);
    let mut script = Script { sequences: (0..4).map(tokens).collect() };
    let batch = script.step(&[500; 4]);
    let mut want = Vec::new();
    alone.forward(&batch, &mut want).expect("one device");
    for is_direct in [true, false] {
        let way = Way { is_direct, limits, ..BY_LAYERS };
        let mut several = Together::load(&devices, &folder, shape.dtype, way);
        let mut got = Vec::new();
        several.forward(&batch, &mut got).expect("several devices");
        let (rms, largest) = errors(&got, &want);
        let allowed = allowed(&shape);
        assert!(rms < allowed && largest < 8.0 * allowed, "{rms} and {largest} of {allowed}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Random weights on the first devices.
fn on_several() -> EngineOptions {
    EngineOptions { devices: list(world()), ..options() }
}

/// The same with whole layers on each.
fn by_layers() -> EngineOptions {
    EngineOptions { split: "layers".to_string(), ..on_several() }
}

fn open(folder: &Folder, options: &EngineOptions) -> Result<Engine> {
    Engine::open(folder.path(), options, None, &mut |_| true)
}

#[test]
fn an_engine_on_several_devices_opens_answers_and_says_where_it_is() {
    let Some(_) = several() else { return };
    let folder = Folder::new("two", &DIVIDED);
    let engine = open(&folder, &on_several()).expect("it opens");
    let first = reply(&engine).expect("a reply");
    assert!(!first.is_empty());
    assert_eq!(reply(&engine), Ok(first.clone()), "the same again");
    assert_eq!(engine.info()["backend"]["devices"], serde_json::json!(Vec::from_iter(0..world())));
    drop(engine);
    let again = open(&folder, &on_several()).expect("it opens again");
    assert_eq!(reply(&again), Ok(first), "the same from another engine");
    let estimate = Engine::estimate(folder.path(), &on_several()).expect("an estimate");
    assert_eq!(estimate.device, format!("cuda:{}", list(world())));
}

#[test]
fn an_engine_of_whole_layers_opens_answers_and_says_how_it_is_divided() {
    let Some(_) = several() else { return };
    let folder = Folder::new("two-layers", &Shape { layers: 5, ..DIVIDED });
    let options = by_layers();
    let engine = open(&folder, &options).expect("it opens");
    let first = reply(&engine).expect("a reply");
    assert!(!first.is_empty());
    assert_eq!(reply(&engine), Ok(first.clone()), "the same again");
    let info = engine.info();
    assert_eq!(info["split"], "layers");
    let counts = info["rank_layers"].as_array().expect("a list").iter();
    let counts: Vec<u64> = counts.map(|count| count.as_u64().expect("a count")).collect();
    assert!(counts.len() == world() && counts.iter().sum::<u64>() == 5 && !counts.contains(&0));
    for request in many(&engine, 24) {
        assert_eq!(end_of(&request), Ok(200));
    }
    drop(engine);
    assert_eq!(reply(&open(&folder, &options).expect("it opens again")), Ok(first));
}

#[test]
fn more_layers_than_fit_are_refused_with_the_name_of_a_device() {
    let Some(_) = several() else { return };
    let folder = Folder::new("two-full", &DIVIDED);
    let options = EngineOptions { kv_cache_tokens: u32::MAX as usize, ..by_layers() };
    let estimate = Engine::estimate(folder.path(), &options).expect("an estimate");
    assert!(!estimate.fits && estimate.device == format!("cuda:{}", list(world())));
    match open(&folder, &options).map(drop) {
        Err(Error::OutOfDeviceMemory { device, needed_bytes, available_bytes, .. }) => {
            let mut devices = (0..world()).map(|index| format!("cuda:{index}"));
            assert!(devices.any(|name| name == device), "{device}");
            assert!(needed_bytes > available_bytes);
        }
        other => panic!("{other:?}"),
    }
}

/// What a request came to.
fn end_of(request: &Request) -> Result<usize> {
    let mut tokens = 0;
    loop {
        let event = request.next(Some(Duration::from_secs(60))).expect("an event");
        tokens += event.token_ids.len();
        match event.kind {
            EventKind::Finished => return Ok(tokens),
            EventKind::Failed => return Err(event.error.expect("a reason")),
            _ => {}
        }
    }
}

/// Prompts of several lengths, more than the cache holds at once.
fn many(engine: &Engine, count: usize) -> Vec<Request> {
    let mut params = engine.generation_defaults();
    (params.max_tokens, params.ignore_eos) = (200, true);
    let submit = |index: usize| {
        let prompt = (0..30 + index % 7 * 20).map(|i| (i * 7 + index) as u32 % 280).collect();
        engine.submit_tokens(prompt, &params, None).expect("submitted")
    };
    (0..count).map(submit).collect()
}

#[test]
fn requests_on_several_devices_are_cancelled_and_step_back() {
    let Some(_) = several() else { return };
    let folder = Folder::new("two-many", &DIVIDED);
    let options = EngineOptions { max_batch_sequences: 16, ..on_several() };
    let engine = open(&folder, &options).expect("it opens");
    let requests = many(&engine, 48);
    for request in requests.iter().step_by(3) {
        request.cancel(false);
    }
    for (index, request) in requests.iter().enumerate() {
        match end_of(request) {
            Ok(tokens) => assert!(tokens == 200 || index % 3 == 0, "{index}: {tokens} tokens"),
            Err(error) => assert!(index % 3 == 0 && error == Error::Cancelled, "{index}: {error}"),
        }
    }
    let preempted = engine.metrics()["preemptions"].as_u64().expect("a count");
    assert!(preempted > 0, "a cache of 2048 tokens is not enough for 16 of 250");
    assert!(!reply(&engine).expect("it goes on").is_empty());
}

#[test]
fn what_does_not_divide_is_refused_with_what_would() {
    let Some(_) = several() else { return };
    let folder = Folder::new("three-heads", &Shape { heads: 3, hidden: 192, ..DIVIDED });
    match open(&folder, &on_several()).map(drop) {
        Err(Error::Option { key, reason }) => {
            assert!(key == "tensor_parallel" && reason.contains("these work: [1"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(feature = "test-hooks")]
mod lost {
    use std::time::Instant;

    use qwen::backend::cuda::faults::{
        ALLOCATE, INSTANTIATE, LAUNCH, MULTIPLY, REPLAY, arm, disarm,
    };

    use super::*;
    use crate::faults::{MARK, child};

    /// The operations of a run that are refused, each in an engine of its own.
    type Refused = &'static [(&'static str, u32)];
    const OF_A_CHAT: Refused =
        &[(LAUNCH, 1), (LAUNCH, 12), (MULTIPLY, 3), (REPLAY, 1), (REPLAY, 8)];
    /// In the one step that its prompt takes.
    const OF_MANY_ROWS: Refused = &[(LAUNCH, 1), (LAUNCH, 9), (LAUNCH, 16), (MULTIPLY, 3)];

    /// What follows a prompt whose rows have owners when they are summed.
    fn reply_to_many_rows(engine: &Engine) -> Result<String> {
        let mut params = engine.generation_defaults();
        params.sampling.temperature = 0.0;
        (params.max_tokens, params.ignore_eos) = (20, true);
        let prompt = (0..400).map(|i| i * 7 % 280).collect();
        let request = engine.submit_tokens(prompt, &params, None)?;
        let mut ids = Vec::new();
        loop {
            let event = request.next(Some(Duration::from_secs(60))).expect("an event");
            ids.extend_from_slice(&event.token_ids);
            match event.kind {
                EventKind::Finished => return Ok(format!("{ids:?}")),
                EventKind::Failed => return Err(event.error.expect("a reason")),
                _ => {}
            }
        }
    }

    /// While engines of `options` run. What was seen.
    fn lose_while_running(
        folder: &Folder,
        options: &EngineOptions,
        reply: fn(&Engine) -> Result<String>,
        refused: Refused,
    ) -> Vec<String> {
        let want = reply(&open(folder, options).expect("it opens")).expect("a reply");
        let mut found = Vec::new();
        for &(operation, nth) in refused {
            let engine = open(folder, options).expect("it opens");
            arm(operation, nth);
            let begun = Instant::now();
            let error = reply(&engine).expect_err(operation);
            let took = begun.elapsed();
            assert!(disarm(), "{operation}, number {nth} never came");
            let named =
                matches!(&error, Error::EngineFailed { reason } if reason.contains(operation));
            assert!(named, "{operation}, number {nth}: {error:?}");
            assert!(took < Duration::from_secs(2), "{operation}, number {nth}: after {took:?}");
            drop(engine);
            let engine = open(folder, options).expect("a new engine opens");
            assert_eq!(reply(&engine).as_ref(), Ok(&want), "after {operation}, number {nth}");
            found.push(format!("{operation} {nth}: {} ms", took.as_millis()));
        }
        found
    }

    #[test]
    #[ignore = "run in a child by the test below"]
    fn lose_a_rank() {
        let folder = Folder::new("lost", &DIVIDED);
        let mut found = Vec::new();
        for options in [on_several(), by_layers()] {
            found.extend(lose_while_running(&folder, &options, reply, OF_A_CHAT));
            found.extend(lose_while_running(&folder, &options, reply_to_many_rows, OF_MANY_ROWS));
        }
        let want = reply(&open(&folder, &on_several()).expect("it opens")).expect("a reply");
        for (operation, nth) in
            [(LAUNCH, 3), (MULTIPLY, 2), (INSTANTIATE, 2), (ALLOCATE, 9), (ALLOCATE, 20)]
        {
            arm(operation, nth);
            let begun = Instant::now();
            let opened = open(&folder, &on_several()).map(drop);
            let took = begun.elapsed();
            assert!(disarm(), "{operation}, number {nth} never came at open");
            assert!(opened.is_err() && took < Duration::from_secs(20), "{operation}: {took:?}");
            found.push(format!("open, {operation} {nth}: {} ms", took.as_millis()));
        }
        assert_eq!(reply(&open(&folder, &on_several()).expect("it opens")), Ok(want));
        eprintln!("{MARK}{}", found.join("; "));
    }

    #[test]
    fn a_lost_rank_fails_its_engine_soon() {
        let Some(_) = several() else { return };
        eprintln!("{}", child("parallel::lost::lose_a_rank", None));
    }
}
