//! A checkpoint's files. The first byte chooses which file of a sound folder the rest replaces.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use qwen::engine::{Engine, EngineOptions, GenerationParams};
use qwen::text::tokenizer::{Specials, Tokenizer};

use super::{test_data, tokenizer};

/// Folder of tests/data/hostile, and its file that is replaced.
const CHECKPOINT_FILES: [(&str, &str); 9] = [
    ("sound", "model.safetensors"),
    ("sound", "config.json"),
    ("sound", "generation_config.json"),
    ("sound-sharded", "model.safetensors.index.json"),
    ("sound-sharded", "model-00001-of-00002.safetensors"),
    ("sound-quantised", "model.safetensors"),
    ("sound-quantised", "config.json"),
    ("sound", "quantize_config.json"),
    ("sound", "model.safetensors.index.json"),
];

/// A copy of a sound folder of which one file at a time is another; removed at the end.
struct Workbench(PathBuf);

impl Workbench {
    /// A folder of tests/data/hostile with what it lacks of `sound`; an empty one if there is no such.
    fn new(name: &str) -> Workbench {
        let thread = std::thread::current().id();
        let folder = format!("qwen-fuzz-{}-{thread:?}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let hostile = test_data().join("hostile");
        if hostile.join(name).is_dir() {
            for file in ["generation_config.json", "qwen.tiktoken"] {
                std::fs::copy(hostile.join("sound").join(file), folder.join(file)).expect("a copy");
            }
            for entry in std::fs::read_dir(hostile.join(name)).expect("a folder") {
                let path = entry.expect("an entry").path();
                let to = folder.join(path.file_name().expect("a name"));
                std::fs::copy(&path, to).expect("a copy");
            }
        }
        Workbench(folder)
    }

    /// Does `work` while `file` holds `bytes`.
    fn with(&self, file: &str, bytes: &[u8], work: impl FnOnce(&Path)) {
        let path = self.0.join(file);
        let sound = std::fs::read(&path).ok();
        std::fs::write(&path, bytes).expect("a written file");
        work(&self.0);
        match sound {
            Some(sound) => std::fs::write(&path, sound).expect("a written file"),
            None => std::fs::remove_file(&path).expect("a removed file"),
        }
    }
}

impl Drop for Workbench {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn with_file(sound: &'static str, file: &str, bytes: &[u8], work: impl FnOnce(&Path)) {
    thread_local! {
        static BENCHES: RefCell<HashMap<&'static str, Workbench>> = RefCell::default();
    }
    BENCHES.with_borrow_mut(|benches| {
        benches.entry(sound).or_insert_with(|| Workbench::new(sound)).with(file, bytes, work);
    });
}

/// Opens the checkpoint as a program would, and lets it say a few tokens.
pub(crate) fn loader(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let (sound, file) = CHECKPOINT_FILES[usize::from(choice) % CHECKPOINT_FILES.len()];
    let options = EngineOptions {
        backend: "cpu".to_string(),
        num_threads: 1,
        max_context_tokens: 16,
        kv_cache_tokens: 64,
        ..EngineOptions::default()
    };
    with_file(sound, file, bytes, |folder| {
        // What the estimate finds wrong, opening would, too.
        let estimate = Engine::estimate(folder, &options);
        let Ok(engine) = Engine::open(folder, &options, None, &mut |_| true) else { return };
        estimate.expect("what can be opened can be estimated");
        let params = GenerationParams { max_tokens: 3, ..engine.generation_defaults() };
        let request = engine.submit_tokens(vec![0, 1], &params, None);
        while request.as_ref().is_ok_and(|request| request.next(None).is_ok()) {}
        engine.health().expect("no input fails an engine");
    });
}

/// The vocabulary, in either of its forms.
pub(crate) fn vocabulary(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let file = if choice % 2 == 0 { "qwen.tiktoken" } else { "tokenizer.json" };
    let folder = if choice % 2 == 0 { "sound" } else { "no-vocabulary" };
    let work = |folder: &Path| {
        let Ok(opened) = Tokenizer::open(folder) else { return };
        let texts = ["a a\n你好 <|im_end|>\u{301}", std::str::from_utf8(bytes).unwrap_or("b")];
        for text in texts {
            for specials in [Specials::AsText, Specials::Parse] {
                let ids = opened.encode(text, specials);
                assert!(ids.iter().all(|&id| opened.token_bytes(id).is_some()));
                // A vocabulary with all bytes loses nothing, whatever else is in it.
                let ours = tokenizer().encode(text, specials);
                let meant = tokenizer().decode_bytes(&ours, true);
                assert!(!has_all_bytes(&opened) || opened.decode_bytes(&ids, true) == meant);
            }
        }
    };
    with_file(folder, file, bytes, work);
}

fn has_all_bytes(tokenizer: &Tokenizer) -> bool {
    let tokens = tokenizer.ordinary_tokens();
    let single: HashSet<u8> =
        tokens.iter().filter(|token| token.len() == 1).map(|token| token[0]).collect();
    single.len() == 256
}
