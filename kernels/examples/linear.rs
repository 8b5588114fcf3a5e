//! How close the linear layers come to this machine: `cargo run --release -p volley-kernels --example linear [threads]`.
//!
//! Measures the roofs (int8 dot products in registers, reading memory) and SmolLM2-135M's layers in turn, so that
//! what else runs on the machine slows both; prints medians, and the best of all rounds in brackets.

#![allow(unsafe_code)] // as in the kernels that it measures

use std::hint::black_box;

use bytes::Bytes;
use volley_kernels::cpu::isa::Isa;
use volley_kernels::cpu::linear::{Epilogue, matmul};
use volley_kernels::cpu::pack::{Activations, Packed, Packer};
use volley_kernels::cpu::pool::Pool;
use volley_kernels::cpu::prepared::Prepared;
use volley_kernels::{Activation, DType, Tensor};

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

/// The process's CPU time.
struct Clock(f64);

impl Clock {
    fn now() -> Self {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: fills `t`.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
        Self(t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9)
    }
    fn seconds(&self) -> f64 {
        Self::now().0 - self.0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |n| n.parse())?;
    let pool = Pool::new(threads)?;
    let packer = Packer::new(Activations::Int8);
    let start = Clock::now();
    let sources: Vec<Vec<Tensor>> =
        (0..LAYERS).map(|_| SHAPES[..4].iter().map(random_tensor).collect()).collect();
    let head = random_tensor(&SHAPES[4]);
    println!("made random weights in {:.2} s", start.seconds());
    let start = Clock::now();
    let mut layers = Vec::new();
    for tensors in &sources {
        for (tensor, shape) in tensors.iter().zip(SHAPES) {
            layers.push(pack(&packer, &pool, tensor, shape.0)?);
        }
    }
    layers.push(pack(&packer, &pool, &head, "head")?);
    let bytes: usize = layers.iter().map(Packed::bytes).sum();
    println!("packed {:.1} MB in {:.2} s, {threads} threads", bytes as f64 / 1e6, start.seconds());

    let isas = std::env::args().nth(2).map_or(vec![Isa::Avx512], |_| Isa::available());
    for isa in isas {
        println!("\n{isa:?}");
        if std::env::args().nth(3).is_some() {
            batches(&pool, isa, &layers);
        }
        model(&pool, isa, &layers, bytes);
    }
    Ok(())
}

fn pack(packer: &Packer, pool: &Pool, t: &Tensor, name: &str) -> Result<Packed, volley_kernels::Error> {
    if name != "gate_up" {
        return packer.linear(pool, &[(t.clone(), None)]);
    }
    let half = |data| Tensor::new(name, t.dtype, t.rows / 2, t.cols, data);
    let middle = t.data.len() / 2;
    packer.gated(pool, &half(t.data.slice(..middle))?, &half(t.data.slice(middle..))?)
}

/// Each layer at several numbers of rows, against the int8 roof (all instruction sets against the same).
fn batches(pool: &Pool, isa: Isa, layers: &[Packed]) {
    let tested = [&layers[0], &layers[1], &layers[2], &layers[3], &layers[layers.len() - 1]];
    for (w, (name, outputs, inputs, dtype)) in tested.into_iter().zip(SHAPES) {
        for rows in [1usize, 4, 16, 64, 512] {
            let (a, mut out) = operands(isa, w, rows);
            let operations = 2.0 * (outputs * inputs * rows) as f64;
            let repeats = ((3e8 / operations) as usize).clamp(1, 200);
            let mut speeds = Vec::new();
            let mut roofs = Vec::new();
            for _ in 0..ROUNDS {
                roofs.push(dot_roof(pool));
                let start = Clock::now();
                (0..repeats).for_each(|_| multiply(pool, isa, w, &a, rows, &mut out));
                speeds.push(operations * repeats as f64 / start.seconds() / 1e9);
            }
            let micros = operations / median(&mut speeds) / 1e3;
            println!(
                "{name:8} {outputs:5}×{inputs:<4} {dtype:?} {rows:4} rows {micros:9.1} µs  {}",
                against(&mut speeds, &mut roofs, "GOP/s")
            );
        }
    }
}

/// Rows through the whole model's weights, from memory, against both roofs.
fn model(pool: &Pool, isa: Isa, layers: &[Packed], bytes: usize) {
    let memory = large_pages(12 << 20);
    let operations: usize =
        SHAPES.iter().map(|s| s.1 * s.2 * if s.0 == "head" { 2 } else { 2 * LAYERS }).sum();
    for rows in [1, 2, 4, 8, 16, 32, 64] {
        let mut operands: Vec<_> = layers.iter().map(|w| operands(isa, w, rows)).collect();
        let (mut times, mut reads, mut dots) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Clock::now();
            read_all(pool, &memory);
            reads.push((memory.len() * 8) as f64 / start.seconds() / 1e9);
            dots.push(dot_roof(pool));
            let start = Clock::now();
            for (w, (a, out)) in layers.iter().zip(&mut operands) {
                multiply(pool, isa, w, a, rows, out);
            }
            times.push(1.0 / start.seconds());
        }
        let mut scaled = |by: usize| -> Vec<f64> { times.iter().map(|t| t * by as f64 / 1e9).collect() };
        let (mut read, mut dot) = (scaled(bytes), scaled(operations * rows));
        let millis = 1e3 / median(&mut times);
        println!("model, {rows:2} rows {millis:7.2} ms  {}", against(&mut read, &mut reads, "GB/s"));
        println!("                          {}", against(&mut dot, &mut dots, "GOP/s"));
    }
}

fn operands(isa: Isa, w: &Packed, rows: usize) -> (Prepared, Vec<f32>) {
    let a = Prepared::new(rows, w.inputs()).unwrap();
    let mut random = 1;
    for row in 0..rows {
        let x: Vec<f32> = (0..w.inputs()).map(|_| next(&mut random) as i32 as f32 / 1e9).collect();
        // SAFETY: one thread, no product.
        unsafe { a.set_row(isa, row, &x, w) };
    }
    (a, vec![0.0; rows * w.outputs()])
}

fn multiply(pool: &Pool, isa: Isa, w: &Packed, a: &Prepared, rows: usize, out: &mut [f32]) {
    let out = match w.is_gated() {
        true => Epilogue::Gated(Activation::Silu, out),
        false => Epilogue::Store(out),
    };
    matmul(pool, isa, w, a, rows, out);
}

fn random_tensor(&(name, rows, cols, dtype): &(&str, usize, usize, DType)) -> Tensor {
    let (_, block) = dtype.block();
    let mut random = 7;
    let mut data: Vec<u8> = (0..dtype.row_bytes(cols).unwrap() * rows / 2)
        .flat_map(|_| (next(&mut random) as u16).to_le_bytes())
        .collect();
    for block in data.chunks_exact_mut(block) {
        block[..2].copy_from_slice(&0x2000u16.to_le_bytes()); // f16 of about 0.01
        if dtype == DType::Q4_1 {
            block[2..4].copy_from_slice(&0xa800u16.to_le_bytes());
        }
    }
    Tensor::new(name, dtype, rows, cols, Bytes::from(data)).unwrap()
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

fn read_all(pool: &Pool, memory: &[u64]) {
    let parts: Vec<&[u64]> = memory.chunks(1 << 15).collect();
    pool.run(parts.len(), &|i| {
        let mut sums = [0u64; 32];
        for x in parts[i].as_chunks::<32>().0 {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
        }
        black_box(sums);
    });
}

/// Integer dot products in registers, in GOP/s; 0 where there are none.
fn dot_roof(pool: &Pool) -> f64 {
    if Isa::detect() != Isa::Avx512 {
        return 0.0;
    }
    let (tasks, repeats) = (pool.threads() * 16, 20_000);
    let start = Clock::now();
    pool.run(tasks, &|_| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction set was found.
        unsafe {
            dot_products(repeats)
        };
    });
    (tasks * repeats * 12 * 128) as f64 / start.seconds() / 1e9
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
