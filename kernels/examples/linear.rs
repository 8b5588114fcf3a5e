//! How close the linear layers come to this machine:
//! `cargo run --release -p volley-kernels --example linear [threads] [cpu] [avx512|avx2|portable]`.
//!
//! Measures the roofs (int8 dot products in registers, reading memory) and SmolLM2-135M's layers in turn, so that
//! what else runs on the machine slows both; prints medians, and the best of all rounds in brackets. With `cpu`,
//! time is the process's CPU time divided by its threads, which a busy machine disturbs less.

#![allow(unsafe_code)] // as in the kernels that it measures

use std::hint::black_box;

use bytes::Bytes;
use volley_kernels::cpu::isa::Isa;
use volley_kernels::cpu::linear::{Epilogue, matmul};
use volley_kernels::cpu::pack::{Activations, Packed, Packer};
use volley_kernels::cpu::pool::Pool;
use volley_kernels::cpu::prepared::Prepared;
use volley_kernels::{Activation, DType, Error, Tensor};

const ROUNDS: usize = 15;
const LAYERS: usize = 30;

/// A layer's name, outputs, inputs and format. `gate_up` is two matrices of half the outputs.
const SHAPES: [(&str, usize, usize, DType); 5] = [
    ("qkv", 960, 576, DType::Q4_1),
    ("o", 576, 576, DType::Q4_1),
    ("gate_up", 3072, 576, DType::Q4_1),
    ("down", 576, 1536, DType::Q4_1),
    ("head", 49152, 576, DType::Q8_0),
];

/// Counts seconds of wall time, or of CPU time per thread.
#[derive(Clone, Copy)]
struct Clock {
    id: libc::clockid_t,
    threads: f64,
}

impl Clock {
    fn now(self) -> f64 {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: fills `t`.
        unsafe { libc::clock_gettime(self.id, &mut t) };
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    }

    fn time(self, run: impl FnOnce()) -> f64 {
        let start = self.now();
        run();
        let seconds = self.now() - start;
        if self.id == libc::CLOCK_MONOTONIC { seconds } else { seconds / self.threads }
    }
}

/// What the measurements run on.
struct Bench {
    pool: Pool,
    isa: Isa,
    clock: Clock,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(2);
    let cpu = arguments.iter().any(|a| a == "cpu");
    let id = if cpu { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let named = |isa: &Isa| arguments.iter().any(|a| *a == format!("{isa:?}").to_lowercase());
    let isa = Isa::available().into_iter().find(named).unwrap_or_else(Isa::detect);
    let pool = Pool::new(threads)?;
    let packer = Packer::new(Activations::Int8);
    let layer = |_| SHAPES[..4].iter().map(random_tensor).collect();
    let sources = (0..LAYERS).map(layer).collect::<Result<Vec<Vec<Tensor>>, Error>>()?;
    let head = random_tensor(&SHAPES[4])?;
    let clock = Clock { id, threads: threads as f64 };
    let mut layers = Vec::new();
    let start = clock.now();
    for tensors in &sources {
        for (tensor, shape) in tensors.iter().zip(SHAPES) {
            layers.push(pack(&packer, &pool, tensor, shape.0)?);
        }
    }
    layers.push(pack(&packer, &pool, &head, "head")?);
    let seconds = clock.now() - start;
    let bytes: usize = layers.iter().map(Packed::bytes).sum();
    println!("{isa:?}, {threads} threads; packed {:.1} MB in {seconds:.2} s", bytes as f64 / 1e6);
    drop((sources, head));

    let bench = Bench { pool, isa, clock };
    bench.layers(&[&layers[0], &layers[1], &layers[2], &layers[3], &layers[layers.len() - 1]])?;
    bench.model(&layers, bytes)?;
    Ok(())
}

fn pack(packer: &Packer, pool: &Pool, t: &Tensor, name: &str) -> Result<Packed, Error> {
    if name != "gate_up" {
        return packer.linear(pool, &[(t.clone(), None)]);
    }
    let half = |data| Tensor::new(name, t.dtype, t.rows / 2, t.cols, data);
    let middle = t.data.len() / 2;
    packer.gated(pool, &half(t.data.slice(..middle))?, &half(t.data.slice(middle..))?)
}

impl Bench {
    /// Each layer at several numbers of rows, its weights in cache if they fit, against the int8 roof.
    fn layers(&self, layers: &[&Packed]) -> Result<(), Error> {
        for (w, (name, outputs, inputs, dtype)) in layers.iter().zip(SHAPES) {
            for rows in [1, 4, 16, 64, 512] {
                let (a, mut out) = self.operands(w, rows)?;
                let operations = 2.0 * (outputs * inputs * rows) as f64;
                let repeats = ((3e8 / operations) as usize).clamp(1, 200);
                let (mut speeds, mut roofs) = (Vec::new(), Vec::new());
                for _ in 0..ROUNDS {
                    roofs.push(self.dot_roof());
                    let run = || (0..repeats).for_each(|_| self.multiply(w, &a, rows, &mut out));
                    speeds.push(operations * repeats as f64 / self.clock.time(run) / 1e9);
                }
                let micros = operations / median(&mut speeds) / 1e3;
                let speeds = against(&mut speeds, &mut roofs, "GOP/s");
                println!(
                    "{name:8} {outputs:5}×{inputs:<4} {dtype:?} {rows:4} rows {micros:9.1} µs  {speeds}"
                );
            }
        }
        Ok(())
    }

    /// Rows through the whole model's weights, which come from memory, against both roofs.
    fn model(&self, layers: &[Packed], bytes: usize) -> Result<(), Error> {
        let memory = large_pages(12 << 20);
        let times = |name: &str| if name == "head" { 2 } else { 2 * LAYERS };
        let operations: usize = SHAPES.iter().map(|s| s.1 * s.2 * times(s.0)).sum();
        for rows in [1, 2, 4, 8, 16, 32, 64] {
            let mut operands =
                layers.iter().map(|w| self.operands(w, rows)).collect::<Result<Vec<_>, _>>()?;
            let (mut speeds, mut reads, mut dots) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                reads.push((memory.len() * 8) as f64 / self.clock.time(|| self.read_all(&memory)) / 1e9);
                dots.push(self.dot_roof());
                let seconds = self.clock.time(|| {
                    for (w, (a, out)) in layers.iter().zip(&mut operands) {
                        self.multiply(w, a, rows, out);
                    }
                });
                speeds.push(1.0 / seconds);
            }
            let scaled = |by: usize| -> Vec<f64> { speeds.iter().map(|s| s * by as f64 / 1e9).collect() };
            let (mut read, mut dot) = (scaled(bytes), scaled(operations * rows));
            let millis = 1e3 / median(&mut speeds);
            println!("model, {rows:3} rows {millis:7.2} ms  {}", against(&mut read, &mut reads, "GB/s"));
            println!("                             {}", against(&mut dot, &mut dots, "GOP/s"));
        }
        Ok(())
    }

    fn operands(&self, w: &Packed, rows: usize) -> Result<(Prepared, Vec<f32>), Error> {
        let a = Prepared::new(rows, w.inputs())?;
        let mut random = 1;
        for row in 0..rows {
            let x: Vec<f32> = (0..w.inputs()).map(|_| next(&mut random) as i32 as f32 / 1e9).collect();
            // SAFETY: one thread, no product.
            unsafe { a.set_row(self.isa, row, &x, w) };
        }
        Ok((a, vec![0.0; rows * w.outputs()]))
    }

    fn multiply(&self, w: &Packed, a: &Prepared, rows: usize, out: &mut [f32]) {
        let out = match w.is_gated() {
            true => Epilogue::Gated(Activation::Silu, out),
            false => Epilogue::Store(out),
        };
        matmul(&self.pool, self.isa, w, a, rows, out);
    }

    fn read_all(&self, memory: &[u64]) {
        let parts: Vec<&[u64]> = memory.chunks(1 << 15).collect();
        self.pool.run(parts.len(), &|i| {
            let mut sums = [0u64; 32];
            for x in parts[i].as_chunks::<32>().0 {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
            }
            black_box(sums);
        });
    }

    /// Integer dot products in registers, in GOP/s; 0 where there are none.
    fn dot_roof(&self) -> f64 {
        if Isa::detect() != Isa::Avx512 {
            return 0.0;
        }
        let (tasks, repeats) = (self.pool.threads() * 16, 20_000);
        let seconds = self.clock.time(|| {
            self.pool.run(tasks, &|_| {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the instruction set was found.
                unsafe {
                    dot_products(repeats)
                };
            });
        });
        (tasks * repeats * 12 * 128) as f64 / seconds / 1e9
    }
}

fn random_tensor(&(name, rows, cols, dtype): &(&str, usize, usize, DType)) -> Result<Tensor, Error> {
    let (numbers, block) = dtype.block();
    let mut random = 7;
    let mut data: Vec<u8> = (0..cols * rows / numbers * block / 2)
        .flat_map(|_| (next(&mut random) as u16).to_le_bytes())
        .collect();
    for block in data.chunks_exact_mut(block) {
        block[..2].copy_from_slice(&0x2000u16.to_le_bytes()); // f16 of about 0.01
        if dtype == DType::Q4_1 {
            block[2..4].copy_from_slice(&0xa800u16.to_le_bytes());
        }
    }
    Tensor::new(name, dtype, rows, cols, Bytes::from(data))
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn against(speeds: &mut [f64], roofs: &mut [f64], unit: &str) -> String {
    let (speed, roof) = (median(speeds), median(roofs));
    let (best, top) = (speeds[speeds.len() - 1], roofs[roofs.len() - 1]);
    format!(
        "{speed:6.1} {unit} = {:3.0} % of {roof:5.1}   [{best:6.1} = {:3.0} % of {top:5.1}]",
        100.0 * speed / roof,
        100.0 * best / top
    )
}

/// Memory as the packed weights have it.
fn large_pages(numbers: usize) -> Vec<u64> {
    let mut memory = Vec::with_capacity(numbers);
    #[cfg(target_os = "linux")]
    // SAFETY: a hint for pages within the allocation.
    unsafe {
        let start = (memory.as_mut_ptr() as usize).next_multiple_of(2 << 20);
        libc::madvise(start as *mut _, (numbers * 8).saturating_sub(2 << 20), libc::MADV_HUGEPAGE);
    }
    memory.resize(numbers, 1);
    memory
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_products(repeats: usize) {
    use std::arch::x86_64::*;
    let (x, y) = (_mm512_set1_epi32(0x0102_0304), _mm512_set1_epi32(0x0201_0101));
    let mut sums = [_mm512_setzero_si512(); 12];
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, x, y);
        }
        // SAFETY: no instruction; it keeps the compiler from summing by multiplication.
        unsafe { std::arch::asm!("/* {0} */", in(zmm_reg) sums[0], options(nomem, nostack)) };
    }
    black_box(sums);
}
