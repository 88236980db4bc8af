//! What must not take the process down: no driver, an old one, no cuBLAS, too little memory, a
//! kernel that touches memory it does not own. Each is a status, and the CPU goes on working.
//!
//! Libraries are opened once in a process, and a device that has faulted stays so: these cases run
//! in child processes, the test binary itself with one ignored test and another library path.

use std::path::{Path, PathBuf};
use std::process::Command;

use qwen::backend::cuda::Device;
use qwen::batch::Batch;
use qwen::engine::{Engine, EngineOptions};
use qwen::error::Error;
use qwen::model::config::ModelConfig;
use qwen::tensor::Dtype;

use crate::checkpoint::{Shape, write};
use crate::common::Random;
use crate::device::gpu;
use crate::model::{Script, load_with, on_gpu};

/// What the children print their findings behind.
pub(crate) const MARK: &str = "FOUND: ";

/// Runs ignored test `name` in a child with `library_path`; what it found.
pub(crate) fn child(name: &str, library_path: Option<&Path>) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    if let Some(path) = library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    let output = command.output().expect("a child");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the child ended badly: {text}");
    let found = text.lines().find_map(|line| line.strip_prefix(MARK));
    found.unwrap_or_else(|| panic!("the child found nothing: {text}")).to_string()
}

/// A folder with a stand-in for `libcuda.so` that knows its version and nothing else.
fn fake_driver(name: &str, version: u32) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwen-fake-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let source = folder.join("cuda.c");
    let code = format!("int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}\n");
    std::fs::write(&source, code).expect("written");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(folder.join("libcuda.so"))
        .arg(&source)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "cc makes a library");
    folder
}

#[test]
#[ignore = "run in a child by the tests below"]
fn say_why_there_is_no_device() {
    match Device::open(0) {
        Ok(device) => eprintln!("{MARK}{}", device.name),
        Err(error) => eprintln!("{MARK}{error}"),
    }
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    if Command::new("cc").arg("--version").output().is_err() {
        return eprintln!("SKIPPED, no C compiler");
    }
    let folder = fake_driver("old", 12_040);
    let found = child("faults::say_why_there_is_no_device", Some(&folder));
    assert!(found.contains("supports CUDA 12.4, 13.0 or newer is needed"), "{found}");
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_missing_cublas_is_named() {
    if Command::new("cc").arg("--version").output().is_err() {
        return eprintln!("SKIPPED, no C compiler");
    }
    // Where the system has one in its own folders, no path hides it.
    let has_blas = Command::new("sh").args(["-c", "ldconfig -p | grep -q libcublasLt"]).status();
    if has_blas.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED, cuBLAS is installed in the system");
    }
    let folder = fake_driver("no-blas", 13_000);
    let found = child("faults::say_why_there_is_no_device", Some(&folder));
    assert!(found.contains("cuBLAS (libcublasLt) is not on the library path"), "{found}");
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_missing_driver_is_named_and_the_cpu_serves() {
    if Device::open(0).is_ok() {
        return eprintln!("SKIPPED, there is a GPU");
    }
    let folder = tiny("no-driver", 64);
    let cuda = EngineOptions { backend: "cuda".to_string(), ..random() };
    let refused = Engine::open(&folder, &cuda, None, &mut |_| true).err();
    assert!(matches!(refused, Some(Error::NoDevice { .. })), "{refused:?}");
    // `auto` takes the CPU and says why not the GPU. The folder has no vocabulary, so only the
    // estimate can be asked here; `open` is what every other test does.
    let estimate = Engine::estimate(&folder, &random()).expect("an estimate");
    assert!(estimate.fits);
    std::fs::remove_dir_all(folder).expect("removed");
}

fn random() -> EngineOptions {
    EngineOptions {
        weights: "random".to_string(),
        kv_cache_tokens: 256,
        ..EngineOptions::default()
    }
}

fn tiny(name: &str, head_dim: usize) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwen-faults-{}-{name}", std::process::id()));
    let shape = Shape {
        layers: 2,
        hidden: 2 * head_dim,
        heads: 2,
        width: 256,
        vocab: 512,
        dtype: Dtype::Bf16,
        stretched: false,
    };
    write(&folder, &mut Random::from_env(), &shape);
    folder
}

#[test]
fn too_little_device_memory_is_an_error_at_open_and_nothing_is_lost() {
    let Some(device) = gpu() else { return };
    let folder = tiny("memory", 64);
    let config = ModelConfig::open(&folder).expect("config.json");
    let free = device.free_bytes().expect("asked");
    // Pages for twice the free memory: 2 layers of keys and values, 2 heads of 64, 16 tokens.
    let pages = (2 * free / (2 * 2 * 2 * 64 * 16 * 2)) as usize;
    let refused = load_with(&device, &folder, Dtype::Bf16, &config, pages).err();
    assert!(matches!(refused, Some(Error::OutOfDeviceMemory { .. })), "{refused:?}");
    let after = device.free_bytes().expect("asked");
    assert!(free.abs_diff(after) < 64 << 20, "{free} bytes free before, {after} after");
    let mut model = on_gpu(&device, &folder, Dtype::Bf16, &config);
    let batch = Script { sequences: vec![(vec![1, 2, 3], 0)] }.step(&[3]);
    model.forward(&batch, &mut Vec::new()).expect("a step after the refusal");
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn decode_allocates_nothing_on_the_device_and_repeats_its_bits() {
    let Some(device) = gpu() else { return };
    let folder = tiny("steady", 128);
    let config = ModelConfig::open(&folder).expect("config.json");
    let mut model = on_gpu(&device, &folder, Dtype::Bf16, &config);
    let mut runs: Vec<Vec<u32>> = Vec::new();
    let mut free = Vec::new();
    for _ in 0..3 {
        let mut script = Script { sequences: vec![((0..200).collect(), 0)] };
        let (mut bits, mut logits) = (Vec::new(), Vec::new());
        for count in std::iter::once(60).chain(std::iter::repeat_n(1, 100)) {
            model.forward(&script.step(&[count]), &mut logits).expect("a step");
            bits.extend(logits.iter().map(|x| x.to_bits()));
        }
        free.push(device.free_bytes().expect("asked"));
        runs.push(bits);
    }
    assert!(runs.windows(2).all(|two| two[0] == two[1]), "the same request gave other bits");
    assert_eq!(free[1], free[2], "a hundred decode steps took device memory");
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn estimates_leave_nothing_on_the_device() {
    let Some(device) = gpu() else { return };
    let folder = tiny("context", 64);
    for _ in 0..3 {
        let before = device.free_bytes().expect("asked");
        let options = EngineOptions { backend: "cuda".to_string(), ..random() };
        assert!(Engine::estimate(&folder, &options).expect("an estimate").fits);
        let after = device.free_bytes().expect("asked");
        assert!(before.abs_diff(after) < 32 << 20, "{before} bytes free before, {after} after");
    }
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
#[ignore = "run in a child by the test below: the device is not usable afterwards"]
fn fault_the_device() {
    let device = Device::open(0).expect("a GPU");
    let folder = tiny("poison", 64);
    let config = ModelConfig::open(&folder).expect("config.json");
    let mut model = on_gpu(&device, &folder, Dtype::Bf16, &config);
    // The engine never lets such an id through: the kernel reads far outside the table.
    let batch = Batch {
        token_ids: vec![u32::MAX; 3],
        ..Script { sequences: vec![(vec![1, 2, 3], 0)] }.step(&[3])
    };
    let error = model.forward(&batch, &mut Vec::new()).expect_err("it faults");
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    drop(model);
    // A new engine on the GPU opens, or says that the device is gone; either is an answer.
    let again = Device::open(0).and_then(|device| device.free_bytes());
    let cpu = Engine::estimate(&folder, &EngineOptions { backend: "cpu".to_string(), ..random() });
    assert!(cpu.is_ok_and(|estimate| estimate.fits), "the CPU serves");
    std::fs::remove_dir_all(folder).expect("removed");
    eprintln!("{MARK}{error}; then: {again:?}");
}

#[test]
fn a_fault_on_the_device_is_a_status() {
    let Some(_) = gpu() else { return };
    let found = child("faults::fault_the_device", None);
    assert!(found.contains("the device failed to run a step"), "{found}");
    eprintln!("{found}");
}
