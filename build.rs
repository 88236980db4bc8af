//! Tells the library how it is built (`qwen_build_info_json` reports it), and, with the feature
//! `cuda`, compiles `cuda/*.cu` to fatbins that become part of it. The shared library is linked by
//! build.mk.
//!
//! Inputs of the CUDA build, by environment:
//!
//! | variable          | default                                     | meaning                    |
//! |-------------------|---------------------------------------------|----------------------------|
//! | `QWEN_NVCC`       | `.tools/cuda/...` if it is there, or `nvcc` | the compiler               |
//! | `QWEN_CUDA_ARCHS` | `80 90a`                                    | GPUs to make code for      |
//! | `QWEN_CUDA_PTX`   | `80`                                        | PTX for all later GPUs     |
//!
//! No GPU is looked at. Register spills fail the build: a kernel that spills is not finished. The
//! compiler's report of registers and shared memory is left in `OUT_DIR/NAME.txt`.

#![allow(clippy::expect_used, clippy::panic, reason = "a build script reports by failing")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `make cuda-toolkit` puts the compiler.
const FETCHED_NVCC: &str = ".tools/cuda/nvidia/cu13/bin/nvcc";

fn main() {
    for (name, from) in [("QWEN_BUILD_TARGET", "TARGET"), ("QWEN_BUILD_PROFILE", "PROFILE")] {
        println!("cargo:rustc-env={name}={}", std::env::var(from).unwrap_or_default());
    }
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_kernels();
    }
}

fn build_kernels() {
    for name in ["QWEN_NVCC", "QWEN_CUDA_ARCHS", "QWEN_CUDA_PTX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=cuda");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = std::fs::read_dir("cuda")
        .expect("cuda/ is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    let options = Options::from_env();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) =
                    sources.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    options.compile(source, &out);
                }
            });
        }
    });
    let mut table = String::from("/// Every fatbin: name of its source, contents.\n");
    table += "pub(super) const FATBINS: &[(&str, &[u8])] = &[\n";
    for source in &sources {
        let name = stem(source);
        let fatbin = out.join(format!("{name}.fatbin"));
        table += &format!("    ({name:?}, include_bytes!({:?})),\n", fatbin.display().to_string());
    }
    std::fs::write(out.join("kernels.rs"), table + "];\n").expect("OUT_DIR is writable");
}

struct Options {
    nvcc: String,
    targets: Vec<String>,
}

impl Options {
    fn from_env() -> Options {
        let fetched = Path::new(FETCHED_NVCC);
        let nvcc = std::env::var("QWEN_NVCC").unwrap_or_else(|_| {
            if fetched.exists() { FETCHED_NVCC.to_string() } else { "nvcc".to_string() }
        });
        let list = |name: &str, default: &str| {
            let text = std::env::var(name).unwrap_or_else(|_| default.to_string());
            text.split_whitespace().map(str::to_string).collect::<Vec<_>>()
        };
        let code = list("QWEN_CUDA_ARCHS", "80 90a");
        let ptx = list("QWEN_CUDA_PTX", "80");
        // Hopper's matrix units are in 90a only: code for plain 90 would have kernels without a body.
        let is_plain = |arch: &&String| arch.starts_with('9') && !arch.ends_with('a');
        if let Some(arch) = code.iter().chain(&ptx).find(is_plain) {
            panic!("CUDA target `{arch}`: Hopper's is 90a, for code and for PTX");
        }
        let targets = code
            .iter()
            .map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}"))
            .chain(
                ptx.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=compute_{arch}")),
            )
            .collect();
        Options { nvcc, targets }
    }

    fn compile(&self, source: &Path, out: &Path) {
        let name = stem(source);
        let result = Command::new(&self.nvcc)
            .args(["-fatbin", "-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v"])
            .args(&self.targets)
            .arg("-o")
            .arg(out.join(format!("{name}.fatbin")))
            .arg(source)
            .output();
        let result = result.unwrap_or_else(|error| {
            panic!(
                "cannot run `{}`: {error}. `make cuda-toolkit` fetches a compiler; without the \
                 feature `cuda` (make CUDA=0) none is needed",
                self.nvcc
            )
        });
        let report = String::from_utf8_lossy(&result.stderr).into_owned()
            + &String::from_utf8_lossy(&result.stdout);
        assert!(
            result.status.success(),
            "{} does not compile with `{}` (nvcc of CUDA 13 is meant; QWEN_NVCC names another, \
             QWEN_CUDA_ARCHS and QWEN_CUDA_PTX what to compile for):\n{report}",
            source.display(),
            self.nvcc
        );
        let spills =
            |line: &&str| line.contains("spill") && !line.contains(" 0 bytes spill stores");
        if let Some(line) = report.lines().find(spills) {
            panic!("{} spills registers: {line}\n{report}", source.display());
        }
        std::fs::write(out.join(format!("{name}.txt")), report).expect("OUT_DIR is writable");
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
