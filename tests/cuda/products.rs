//! Products by cuBLAS: whatever ran before, wherever the buffers lie and whoever computes them, a shape
//! gives the same bits; and timing its algorithms touches nothing but the output.

use qwen::backend::cuda::{Cuda, CudaSettings, Device, DeviceBuffer, StepLimits, Weight};
use qwen::backend::random::{Normal, seed_of};
use qwen::backend::{Backend, BufferKind, RopeStep, StepStart};
use qwen::batch::Batch;
use qwen::tensor::{Dtype, HostTensor};

use crate::common::Random;
use crate::common::ops::{normals, weights};
use crate::device::{backend, gpu, limits};
use crate::ops::{begin, end, filled, poisoned, rounded};

/// More rows than the kernels of our own take, so that cuBLAS has the work.
const ROWS: [usize; 4] = [17, 33, 100, 200];

/// A backend that takes cuBLAS's first suggestions.
fn untimed(device: &Device, dtype: Dtype) -> Cuda {
    let settings = CudaSettings {
        dtype,
        limits: StepLimits { usable_ids: 64, ..limits(64) },
        mlp_width: 64,
        weight_bytes: 0,
        quantised: None,
        host_embedding: false,
        autotune: false,
    };
    Cuda::new(device.clone(), settings).expect("a backend on the GPU")
}

fn timed(device: &Device, dtype: Dtype) -> Cuda {
    backend(device, dtype, limits(64), (64, 64))
}

/// One product.
struct Problem {
    x: Vec<f32>,
    w: HostTensor,
    rows: usize,
    kind: BufferKind,
}

impl Problem {
    fn new(random: &mut Random, dtype: Dtype) -> Problem {
        let (rows, k) = (random.pick(&ROWS), random.pick(&[512, 1536, 4096]));
        let n = random.pick(&[264, 1000, 2048]);
        Problem {
            x: rounded(dtype, &normals(random, rows * k)),
            w: weights(random, dtype, n, k),
            rows,
            kind: random.pick(&[BufferKind::Stream, BufferKind::Activation]),
        }
    }

    /// Its bits, in buffers with room for `more` rows, which must stay as they are.
    fn solve(&self, cuda: &mut Cuda, more: usize) -> Vec<u32> {
        let (k, n, rows) = (self.w.cols(), self.w.rows(), self.rows);
        let matrix = cuda.matrix(&self.w).expect("memory");
        let mut padded = self.x.clone();
        padded.resize((rows + more) * k, f32::NAN);
        let mut x = filled(cuda, BufferKind::Activation, &padded, k);
        let mut out = poisoned(cuda, self.kind, rows + more, n);
        x.set_rows(rows);
        product(cuda, rows, &x, &matrix, &mut out);
        out.set_rows(rows + more);
        x.set_rows(rows + more);
        let (got, input) = (cuda.read(&out).expect("read"), cuda.read(&x).expect("read"));
        assert_eq!(input[..rows * k], self.x, "the input has changed");
        assert!(got[rows * n..].iter().all(|x| x.is_nan()), "rows beyond the output were written");
        assert!(got[..rows * n].iter().all(|x| x.is_finite()), "not all was written");
        got[..rows * n].iter().map(|x| x.to_bits()).collect()
    }
}

fn product(
    cuda: &mut Cuda,
    rows: usize,
    x: &DeviceBuffer,
    matrix: &Weight,
    out: &mut DeviceBuffer,
) {
    begin(cuda, rows.max(2), vec![]);
    cuda.linear(x, matrix, None, out);
    end(cuda);
}

#[test]
fn a_product_gives_the_same_bits_whatever_ran_before() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let problems: Vec<Problem> = (0..6).map(|_| Problem::new(&mut random, dtype)).collect();
        for make in [timed, untimed] {
            let mut cuda = make(&device, dtype);
            let first: Vec<_> = problems.iter().map(|one| one.solve(&mut cuda, 0)).collect();
            let again: Vec<_> = problems.iter().rev().map(|one| one.solve(&mut cuda, 40)).collect();
            let mut other = make(&device, dtype);
            let others: Vec<_> = problems.iter().map(|one| one.solve(&mut other, 7)).collect();
            assert!(first.iter().eq(again.iter().rev()), "{random}: later, {}", dtype.name());
            assert!(first == others, "{random}: another engine, {}", dtype.name());
        }
    }
}

#[test]
fn a_step_is_recorded_only_once_its_products_are_timed() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    let dtype = Dtype::Bf16;
    let mut cuda = timed(&device, dtype);
    let problem = Problem { rows: 24, ..Problem::new(&mut random, dtype) };
    let (k, n) = (problem.w.cols(), problem.w.rows());
    let matrix = cuda.matrix(&problem.w).expect("memory");
    let x = filled(
        &mut cuda,
        BufferKind::Activation,
        &rounded(dtype, &normals(&mut random, 24 * k)),
        k,
    );
    let mut out = poisoned(&mut cuda, problem.kind, 24, n);
    let rope = RopeStep {
        query_scale: vec![1.0; 24],
        inv_freq: vec![0.0; 24 * 32],
        ..RopeStep::default()
    };
    let (mut starts, mut bits) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        cuda.write(&mut out, &vec![f32::NAN; 24 * n]).expect("poisoned");
        let start = cuda.begin_step(&Batch::padding(24), &rope).expect("a step begins");
        if start == StepStart::Run {
            cuda.linear(&x, &matrix, None, &mut out);
        }
        end(&mut cuda);
        starts.push(start == StepStart::Run);
        bits.push(cuda.read(&out).expect("read").iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
    assert_eq!(starts, [true, true, false, false], "once to time, once to record, then replayed");
    assert!(bits.windows(2).all(|two| two[0] == two[1]), "{random}");
    let products = cuda.products();
    assert!(products.iter().all(|line| !line.contains("not timed")), "{products:?}");
}

/// Hidden size, width of the MLP and rows of the vocabulary.
const SHAPES: [(&str, usize, usize, usize); 2] =
    [("72B", 8192, 24576, 152_064), ("7B", 4096, 11008, 151_936)];

/// The linears of a shape: rows, columns, and what the output is.
fn linears(hidden: usize, width: usize, vocab: usize) -> [(usize, usize, BufferKind); 5] {
    [
        (3 * hidden, hidden, BufferKind::Activation),
        (hidden, hidden, BufferKind::Stream),
        (2 * width, hidden, BufferKind::Activation),
        (hidden, width, BufferKind::Stream),
        (vocab, hidden, BufferKind::Stream),
    ]
}

/// A tool rather than a test: what timing chooses for published shapes, and what it gains.
#[test]
#[ignore = "a measurement: run it alone, with --nocapture"]
fn print_choices() {
    let Some(device) = gpu() else { return };
    let mut random = Random::from_env();
    for (name, hidden, width, vocab) in SHAPES {
        let mut cuda = timed(&device, Dtype::Bf16);
        for (n, k, kind) in linears(hidden, width, vocab) {
            let seed = seed_of(name, (n + k) as u64);
            let deviation = 1.0 / (k as f32).sqrt();
            let normal =
                Normal { dtype: Dtype::Bf16, rows: n, cols: k, mean: 0.0, deviation, seed };
            let matrix = cuda.random_matrix(&normal).expect("memory");
            // The head computes the wanted rows only.
            let most = if n > 100_000 { 64 } else { 2112 };
            let mut x =
                filled(&mut cuda, BufferKind::Activation, &normals(&mut random, most * k), k);
            let mut out = cuda.buffer(kind, most, n).expect("memory");
            for rows in [24, 32, 48, 64, 128, 256, 512, 1024, 2048, 2112] {
                if rows <= most {
                    x.set_rows(rows);
                    product(&mut cuda, rows, &x, &matrix, &mut out);
                }
            }
        }
        for line in cuda.products() {
            eprintln!("{name}: {line}");
        }
    }
}
