//! `tests/data/make_published.py` writes what was published: the numbers of Qwen-72B-Chat-Int4 by its
//! list of tensors, and a small checkpoint of the same structure opened, read and run.
#![allow(clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen::checkpoint::names::{self, LayerTensor};
use qwen::checkpoint::shard::{Split, slice};
use qwen::checkpoint::{Checkpoint, Source};
use qwen::engine::session::{Flow, Session};
use qwen::engine::{Engine, EngineOptions};
use qwen::error::Error;
use qwen::model::config::ModelConfig;
use qwen::quant::Groups;
use qwen::reader::{Filled, HeapBlock, PIECE_BYTES, Readers};
use qwen::tensor::Dtype;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the script prints.
fn script(arguments: &[&str]) -> String {
    let python = Path::new(ROOT).join(".venv/bin/python");
    assert!(python.exists(), "no {}: run `make fixtures`", python.display());
    let script = Path::new(ROOT).join("tests/data/make_published.py");
    let output = Command::new(python).arg(script).args(arguments).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Name -> dtype and extents, and the number of bytes.
fn list(shape: &str, bits: &str) -> (HashMap<String, String>, String) {
    let text = script(&["--list", "--shape", shape, "--bits", bits]);
    let mut lines: Vec<&str> = text.lines().collect();
    let total = lines.pop().expect("a total").to_string();
    let split = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string()));
    (lines.iter().map(|line| split(line).expect("a tensor")).collect(), total)
}

#[test]
fn the_72b_has_the_published_numbers() {
    let (tensors, total) = list("qwen-72b-chat", "4");
    assert_eq!(total, "41277997056 bytes");
    assert_eq!(tensors.len(), 80 * (2 + 5 * 5) + 3);
    for (name, want) in [
        ("transformer.wte.weight", "F16 152064 8192"),
        ("transformer.h.0.ln_1.weight", "F16 8192"),
        ("transformer.h.79.attn.c_attn.qweight", "I32 1024 24576"),
        ("transformer.h.79.attn.c_attn.qzeros", "I32 64 3072"),
        ("transformer.h.79.attn.c_attn.scales", "F16 64 24576"),
        ("transformer.h.79.attn.c_attn.g_idx", "I32 8192"),
        ("transformer.h.79.attn.c_attn.bias", "F16 24576"),
        ("transformer.h.40.attn.c_proj.qweight", "I32 1024 8192"),
        ("transformer.h.40.mlp.w1.qweight", "I32 1024 24576"),
        ("transformer.h.40.mlp.w2.scales", "F16 64 24576"),
        ("transformer.h.40.mlp.c_proj.qweight", "I32 3072 8192"),
        ("transformer.h.40.mlp.c_proj.qzeros", "I32 192 1024"),
        ("transformer.h.40.mlp.c_proj.bias", "F16 8192"),
        ("lm_head.weight", "F16 152064 8192"),
    ] {
        assert_eq!(tensors.get(name).map(String::as_str), Some(want), "{name}");
    }
    assert_eq!(list("qwen-72b-chat", "8").1, "76447236096 bytes");
    assert_eq!(list("qwen-7b-chat", "4").1, "5860564992 bytes");
}

/// A small checkpoint in several shards; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, bits: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("qwen-published-{}-{name}", std::process::id()));
        let out = path.to_str().expect("UTF-8");
        let vocabulary = format!("{ROOT}/tests/data/tiny/plain-bf16/qwen.tiktoken");
        let sizes = ["--shape", "small", "--bits", bits, "--shard-bytes", "300000"];
        let made = script(&[&[out, "--vocabulary", &vocabulary], &sizes[..]].concat());
        assert!(made.contains("57 tensors"), "{made}");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_small_one_opens_and_answers() {
    for bits in ["4", "8"] {
        let folder = Folder::new(&format!("opens-{bits}"), bits);
        let checkpoint = Checkpoint::open(&folder.0).expect("a checkpoint");
        let (tensors, total) = list("small", bits);
        assert_eq!(total, format!("{} bytes", checkpoint.total_bytes()));
        assert_eq!(checkpoint.names().count(), tensors.len());
        assert!(checkpoint.names().all(|name| tensors.contains_key(name)));
        let config = ModelConfig::open(&folder.0).expect("config.json");
        let format = config.quantisation.expect("quantised");
        assert_eq!((format.bits.count().to_string(), format.group_size), (bits.into(), Some(128)));
        // The down matrix: its extents, its groups, no zeros and no bias, as the published ones.
        let (rows, cols) = (config.hidden_size, config.intermediate_size);
        let part = slice(Split::Row, rows, cols, 0, 1).expect("a slice");
        let name = names::layer(1, LayerTensor::DownWeight);
        let down = checkpoint
            .quantised(&name, (rows, cols), &format, &part, (true, false))
            .expect("codes");
        assert_eq!((down.outputs(), down.inputs()), (rows, cols));
        assert!(matches!(down.groups(), Groups::Runs(128)));
        assert!(down.zeros().is_none() && down.bias().is_none());
        let (dtype, ..) = checkpoint.shape(names::LM_HEAD).expect("it is there");
        assert_eq!(dtype, Dtype::F16);

        let options = EngineOptions { backend: "cpu".to_string(), ..EngineOptions::default() };
        let options = EngineOptions { weights: "map".to_string(), ..options };
        let mut told = 0;
        let engine = Engine::open(&folder.0, &options, None, &mut |progress| {
            assert!(told < progress.done_bytes && progress.done_bytes <= progress.total_bytes);
            told = progress.done_bytes;
            true
        })
        .expect("it opens");
        assert_eq!(told, checkpoint.total_bytes(), "bytes told of");
        let mut params = engine.generation_defaults();
        (params.max_tokens, params.ignore_eos) = (12, true);
        let session = Session::new(&engine, None);
        let reply = session.chat("Hello.", &params, &mut |_| Flow::Continue).expect("a reply");
        assert_eq!(reply.usage.completion_tokens, 12);
    }
}

/// What a load to a GPU looks at on the way is read, not looked up in a map: a file that somebody cuts short
/// meanwhile is an error (and would otherwise end this process by SIGBUS).
#[test]
fn files_cut_short_while_they_are_loaded_are_an_error() {
    let folder = Folder::new("cut", "4");
    let checkpoint = Checkpoint::open(&folder.0).expect("a checkpoint");
    let config = ModelConfig::open(&folder.0).expect("config.json");
    let format = config.quantisation.expect("quantised");
    let (rows, cols) = (config.hidden_size, config.intermediate_size);
    let part = slice(Split::Row, rows, cols, 0, 1).expect("a slice");
    let down = names::layer(1, LayerTensor::DownWeight);
    let whole = slice(Split::Replicated, rows, 1, 0, 1).expect("a slice");
    let norm = || checkpoint.small_tensor(names::FINAL_NORM, rows, 1, &whole);
    let linear = || checkpoint.quantised(&down, (rows, cols), &format, &part, (true, false));
    assert!(norm().is_ok() && linear().is_ok());
    for entry in std::fs::read_dir(&folder.0).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("it opens");
            file.set_len(8).expect("it is cut");
        }
    }
    for error in [norm().err(), linear().err()] {
        let is_named = matches!(&error, Some(Error::Corrupt { reason, .. })
            if reason.contains("shrank while it was read"));
        assert!(is_named, "{error:?}");
    }
}

/// Every byte of a checkpoint, as the reading threads have it.
#[test]
fn readers_give_the_bytes_of_a_checkpoint() {
    let folder = Folder::new("read", "4");
    let checkpoint = Checkpoint::open(&folder.0).expect("a checkpoint");
    let copied = Checkpoint::open_with(&folder.0, Source::Copy).expect("a checkpoint");
    let blocks = (0..3).map(|_| HeapBlock::default()).collect();
    let readers = Readers::start(blocks, 2).expect("threads");
    let spans = checkpoint.spans();
    let mut read = 0;
    for (span, want) in spans.iter().zip(copied.spans()) {
        assert!(
            span.stored().is_some() && want.stored().is_none() && span.num_bytes() < PIECE_BYTES
        );
        readers.ask(span.clone());
        let Filled { mut block, range } = readers.take().expect("it reads");
        assert_eq!(&block.as_mut()[range], want.bytes());
        readers.give_back(block);
        read += span.num_bytes() as u64;
    }
    assert_eq!(read, checkpoint.total_bytes());
}
