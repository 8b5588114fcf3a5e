//! The wrappers of `kernels/cuda/include`, each by itself: where one of these is wrong on a GPU, so is its instruction.

use std::sync::Arc;

use half::{bf16, f16};
use volley_kernels::{
    Error,
    cuda::{Argument, Device, Element, ElementType, Launch, Memory, TensorMap, Tile},
};

use super::{Operation, e4m3};
use crate::{Case, Output, Random, Trial, unwritten};

pub(super) fn operation() -> Operation {
    Operation {
        name: "wrappers",
        kernels: &[
            "wrap_convert",
            "wrap_copies",
            "wrap_e4m3",
            "wrap_memory",
            "wrap_mma_bf16",
            "wrap_mma_bf16_t",
            "wrap_mma_f16",
            "wrap_mma_s8",
            "wrap_wgmma_128",
            "wrap_wgmma_16",
            "wrap_wgmma_192",
            "wrap_wgmma_256",
            "wrap_wgmma_32",
            "wrap_wgmma_64",
            "wrap_wgmma_8",
            "wrap_wgmma_80",
            "wrap_wgmma_96",
        ],
        cases,
        any,
        speeds: Vec::new,
    }
}

fn cases(_: &mut Random) -> Vec<Case> {
    let mut cases = vec![convert(), memory(), mma_bf16(), mma_f16(), mma_s8(), copies(), products_of_bytes()];
    let kernels = [
        ("wrap_wgmma_8", 8),
        ("wrap_wgmma_16", 16),
        ("wrap_wgmma_32", 32),
        ("wrap_wgmma_64", 64),
        ("wrap_wgmma_80", 80),
        ("wrap_wgmma_96", 96),
        ("wrap_wgmma_128", 128),
        ("wrap_wgmma_192", 192),
        ("wrap_wgmma_256", 256),
    ];
    cases.extend(kernels.map(|(kernel, n)| wgmma(kernel, n)));
    cases
}

/// Their shapes are fixed.
fn any(random: &mut Random) -> Case {
    let mut cases = cases(random);
    cases.swap_remove(random.between(0, cases.len() - 1))
}

/// One block of a kernel.
fn launch(
    device: &Arc<dyn Device>,
    kernel: &'static str,
    threads: u32,
    shared: usize,
    arguments: &[Argument],
) -> Result<(), Error> {
    let launch = Launch { kernel, grid: [1; 3], block: [threads, 1, 1], shared, arguments };
    #[allow(unsafe_code)]
    // SAFETY: each case below gives its kernel the sizes that the source names.
    unsafe {
        device.launch(&launch)
    }
}

fn out<T: Element>(memory: &mut Memory<T>) -> Argument {
    (&memory.view_mut()).into()
}

/// The nearest e4m3, ties to even, at most 448.
fn to_e4m3(value: f32) -> u8 {
    let wanted = f64::from(value.abs());
    let codes = 0..=0x7e_u8;
    let off = |code: &u8| (e4m3(*code) - wanted).abs();
    let nearest = codes.min_by(|a, b| off(a).total_cmp(&off(b)).then((a & 1).cmp(&(b & 1)))).unwrap_or(0);
    nearest | if value.is_sign_negative() { 0x80 } else { 0 }
}

fn convert() -> Case {
    Case::small("conversions of every code", |random| {
        // Over the whole range of f16, past that of e4m3, and ties.
        let mut values: Vec<f32> =
            (0..248).map(|i| (random.normal() * 2f64.powi(i / 10 - 14)) as f32).collect();
        values.extend([0.0, -0.0, 17.0, 19.0, 464.0, 1000.0, 2f32.powi(-10), 3.0 * 2f32.powi(-10)]);
        let given = values.clone();
        let codes = || 0..=255_u8;
        // NaN's codes become ±480 in the exact conversions, and saturate on the way back.
        let back = |code: u8| f64::from(if code & 0x7f == 0x7f { code & 0x80 | 0x7e } else { code });
        let bytes = |code: u8| [code, 255 - code, code ^ 0x80, 0x7f].map(|byte| f64::from(byte as i8));
        Trial::new(move |device| {
            let values = Memory::from_slice(device, &given)?;
            let mut f32s = [256, 512, 1024, 512, 256].map(|len| unwritten::<f32>(device, len));
            let mut codes = [unwritten::<u8>(device, 256)?, unwritten::<u8>(device, 256)?];
            let (mut bf16s, mut f16s) = (unwritten::<bf16>(device, 256)?, unwritten::<f16>(device, 256)?);
            let [e4m3_f32, e4m3_bf16, int8, int4, from_f16] = &mut f32s;
            let at = |memory: &mut Result<Memory<f32>, Error>| match memory {
                Ok(memory) => out(memory),
                Err(_) => 0.into(),
            };
            let arguments = [
                values.view().into(),
                at(e4m3_f32),
                at(e4m3_bf16),
                out(&mut codes[0]),
                at(int8),
                at(int4),
                out(&mut bf16s),
                out(&mut f16s),
                at(from_f16),
                out(&mut codes[1]),
            ];
            launch(device, "wrap_convert", 256, 0, &arguments)?;
            let mut outputs = Vec::new();
            for (name, memory) in ["e4m3 to f32", "e4m3 to bf16", "int8", "int4", "f16"].into_iter().zip(f32s)
            {
                outputs.push(Output::new(name, &memory?.read()?));
            }
            outputs.push(Output::new("e4m3 and back", &codes[0].read()?));
            outputs.push(Output::new("to e4m3", &codes[1].read()?));
            outputs.push(Output::new("to bf16", &bf16s.read()?));
            outputs.push(Output::new("to f16", &f16s.read()?));
            Ok(outputs)
        })
        .expect("e4m3 to f32", codes().map(e4m3).collect(), 0.0)
        .expect("e4m3 to bf16", codes().flat_map(|code| [e4m3(code), e4m3(code ^ 0x80)]).collect(), 0.0)
        .expect("e4m3 and back", codes().map(back).collect(), 0.0)
        .expect("int8", codes().flat_map(bytes).collect(), 0.0)
        .expect(
            "int4",
            codes().flat_map(|c| [f64::from(c & 15) - 8.0, f64::from(c >> 4) - 8.0]).collect(),
            0.0,
        )
        .expect("to bf16", values.iter().map(|&v| bf16::from_f32(v).to_f64()).collect(), 0.0)
        .expect("to f16", values.iter().map(|&v| f16::from_f32(v).to_f64()).collect(), 0.0)
        .expect("f16", values.iter().map(|&v| f16::from_f32(v).to_f64()).collect(), 0.0)
        .expect("to e4m3", values.iter().map(|&v| f64::from(to_e4m3(v))).collect(), 0.0)
    })
}

fn memory() -> Case {
    Case::small("reductions, barriers, hinted loads", |random| {
        let words: Vec<u32> = (0..256).map(|_| random.bits() as u32).collect();
        let copied =
            words.chunks(4).flat_map(|w| [w[0], w[1], w[2].swap_bytes(), w[3]]).map(f64::from).collect();
        let mut sums = vec![f64::from(63 * 32); 64];
        sums.extend(vec![0.0; 64]);
        sums.extend((0..64).map(|t| f64::from(t / 8 * 64 + 28)));
        sums.extend(vec![5.0; 64]);
        sums.extend(vec![(4.0 - 2.0) + (2.25 + 1.5) + 7.0; 64]);
        Trial::new(move |device| {
            let given = Memory::from_slice(device, &words)?;
            let (mut copy, mut sums) = (unwritten::<u32>(device, 256)?, unwritten::<f32>(device, 320)?);
            launch(device, "wrap_memory", 64, 0, &[given.view().into(), out(&mut copy), out(&mut sums)])?;
            Ok(vec![Output::new("copy", &copy.read()?), Output::new("sums", &sums.read()?)])
        })
        .expect("copy", copied, 0.0)
        .expect("sums", sums, 0.0)
    })
}

/// Integers from −8 to 8: their products' sums are exact in every type and order.
fn integers(random: &mut Random, len: usize) -> Vec<f64> {
    (0..len).map(|_| random.between(0, 16) as f64 - 8.0).collect()
}

/// a[m, k] · b[n, k]ᵀ
fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    a.chunks(k).flat_map(|a| b.chunks(k).map(move |b| dot(a, b))).collect()
}

fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect()
}

/// One product by mma.sync of two operands as they lie in memory.
fn mma<T: Element, O: Element + Default>(
    device: &Arc<dyn Device>,
    kernel: &'static str,
    a: &[T],
    b: &[T],
) -> Result<Vec<O>, Error> {
    let (a, b) = (Memory::from_slice(device, a)?, Memory::from_slice(device, b)?);
    let mut c = unwritten::<O>(device, 16 * 8)?;
    launch(device, kernel, 32, 0, &[a.view().into(), b.view().into(), out(&mut c)])?;
    c.read()
}

fn mma_bf16() -> Case {
    Case::small("mma.sync bf16", |random| {
        let (a, b) = (integers(random, 16 * 16), integers(random, 8 * 16));
        let expected = product(&a, &b, 16);
        let [a, b] = [a, b].map(|v| v.into_iter().map(bf16::from_f64).collect::<Vec<_>>());
        Trial::new(move |device| {
            let c: Vec<f32> = mma(device, "wrap_mma_bf16", &a, &b)?;
            let t: Vec<f32> = mma(device, "wrap_mma_bf16_t", &a, &transposed(&b, 16))?;
            Ok(vec![Output::new("c", &c), Output::new("b transposed", &t)])
        })
        .expect("c", expected.clone(), 0.0)
        .expect("b transposed", expected, 0.0)
    })
}

fn mma_f16() -> Case {
    Case::small("mma.sync f16", |random| {
        let (a, b) = (integers(random, 16 * 16), integers(random, 8 * 16));
        let expected = product(&a, &b, 16);
        let [a, b] = [a, b].map(|v| v.into_iter().map(f16::from_f64).collect::<Vec<_>>());
        Trial::new(move |device| Ok(vec![Output::new("c", &mma::<_, f32>(device, "wrap_mma_f16", &a, &b)?)]))
            .expect("c", expected, 0.0)
    })
}

fn mma_s8() -> Case {
    Case::small("mma.sync int8", |random| {
        let [a, b] =
            [16 * 32, 8 * 32].map(|len| random.bytes(len).into_iter().map(|b| b as i8).collect::<Vec<_>>());
        let [wide_a, wide_b] = [&a, &b].map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        Trial::new(move |device| Ok(vec![Output::new("c", &mma::<_, i32>(device, "wrap_mma_s8", &a, &b)?)]))
            .expect("c", product(&wide_a, &wide_b, 32), 0.0)
    })
}

/// Boxes of a row-major matrix.
fn boxes<T: Element>(
    device: &Arc<dyn Device>,
    memory: &Memory<T>,
    element: ElementType,
    [rows, columns]: [usize; 2],
    [box_rows, box_columns]: [usize; 2],
    swizzle: usize,
) -> Result<TensorMap, Error> {
    let pitch = columns * size_of::<T>();
    let base = memory.view().address();
    device.tensor_map(&Tile { base, element, rows, columns, pitch, box_rows, box_columns, swizzle })
}

fn wgmma(kernel: &'static str, n: usize) -> Case {
    Case::small(format!("wgmma 64 × {n}"), move |random| {
        let (a, b) = (integers(random, 64 * 64), integers(random, n * 64));
        let expected = product(&a, &b, 64);
        let [a, b] = [a, b].map(|v| v.into_iter().map(bf16::from_f64).collect::<Vec<_>>());
        let bt = transposed(&b, 64);
        let ways = ["both shared", "a in registers", "b along n", "a in registers, b along n"];
        let trial = Trial::new(move |device| {
            let [a, b, bt] = [&a, &b, &bt].map(|values| Memory::from_slice(device, values));
            let (a, b, bt) = (a?, b?, bt?);
            let mut c = unwritten::<f32>(device, 4 * 64 * n)?;
            let bf16 = ElementType::Bf16;
            let arguments = [
                boxes(device, &a, bf16, [64, 64], [64, 64], 128)?.into(),
                boxes(device, &b, bf16, [n, 64], [n, 64], 128)?.into(),
                boxes(device, &bt, bf16, [64, n], [64, 64], 128)?.into(),
                out(&mut c),
            ];
            let shared = 8192 + (n * 128).next_multiple_of(1024) + n.div_ceil(64) * 8192 + 8;
            launch(device, kernel, 128, shared, &arguments)?;
            Ok(ways.into_iter().zip(c.read()?.chunks(64 * n)).map(|(way, c)| Output::new(way, c)).collect())
        });
        ways.into_iter().fold(trial, |trial, way| trial.expect(way, expected.clone(), 0.0))
    })
}

fn products_of_bytes() -> Case {
    Case::small("wgmma and mma.sync of e4m3, wgmma of f16", |random| {
        // Bytes that are modest numbers, as e4m3 and by twos as f16.
        let [a, b] =
            [(); 2].map(|()| (0..64 * 128).map(|_| to_e4m3(random.normal() as f32)).collect::<Vec<_>>());
        let wide = |bytes: &[u8]| bytes.iter().map(|&code| e4m3(code)).collect::<Vec<_>>();
        let halves = |bytes: &[u8]| {
            let half = |pair: &[u8]| f16::from_le_bytes([pair[0], pair[1]]).to_f64();
            bytes.chunks(2).map(half).collect::<Vec<_>>()
        };
        let first = |bytes: &[u8], rows: usize| -> Vec<f64> {
            bytes.chunks(128).take(rows).flat_map(|row| row[..32].iter().map(|&code| e4m3(code))).collect()
        };
        let expected = product(&wide(&a), &wide(&b), 128);
        let expected_f16 = product(&halves(&a), &halves(&b), 64);
        let corner = product(&first(&a, 16), &first(&b, 8), 32);
        Trial::new(move |device| {
            let (a, b) = (Memory::from_slice(device, &a)?, Memory::from_slice(device, &b)?);
            let mut c = unwritten::<f32>(device, 3 * 64 * 64 + 16 * 8)?;
            let arguments = [
                boxes(device, &a, ElementType::U8, [64, 128], [64, 128], 128)?.into(),
                boxes(device, &b, ElementType::U8, [64, 128], [64, 128], 128)?.into(),
                out(&mut c),
            ];
            launch(device, "wrap_e4m3", 128, 16384 + 8, &arguments)?;
            let c = c.read()?;
            let names = ["both shared", "a in registers", "f16", "mma.sync"];
            Ok(names.into_iter().zip(c.chunks(64 * 64)).map(|(name, c)| Output::new(name, c)).collect())
        })
        // The tensor cores keep fewer bits of a sum of fp8 products than f32 has.
        .expect("both shared", expected.clone(), 1e-3)
        .expect("a in registers", expected, 1e-3)
        .expect("f16", expected_f16, 1e-5)
        .expect("mma.sync", corner, 1e-3)
    })
}

fn copies() -> Case {
    const ROWS: usize = 18;
    const COLUMNS: usize = 64;
    Case::small("tile and bulk copies", |random| {
        let from = random.bf16(ROWS * COLUMNS, 1.0);
        let bytes: Vec<u32> = (0..128).map(|_| random.bits() as u32).collect();
        // What lies outside reads as zero, and is not written.
        let mut to = vec![1.0; ROWS * COLUMNS];
        for (row, column) in (0..16).flat_map(|row| (0..64).map(move |column| (row, column))) {
            let (y, x) = (row + 4, column + 8);
            if row + 4 < ROWS {
                let inside = y < ROWS && x < COLUMNS;
                to[y * COLUMNS + column] = if inside { from[y * COLUMNS + x].to_f64() } else { 0.0 };
            }
        }
        let turned = |i: usize| f64::from(bytes[i ^ 32]);
        let turned = (0..128).map(turned).collect();
        let given = bytes.clone();
        Trial::new(move |device| {
            let (from, given) = (Memory::from_slice(device, &from)?, Memory::from_slice(device, &given)?);
            let to = Memory::from_slice(device, &vec![bf16::ONE; ROWS * COLUMNS])?;
            let mut turned = unwritten::<u32>(device, 128)?;
            let whole = [ROWS, COLUMNS];
            let arguments = [
                boxes(device, &from, ElementType::Bf16, whole, [16, 64], 0)?.into(),
                boxes(device, &to, ElementType::Bf16, whole, [16, 64], 0)?.into(),
                given.view().into(),
                out(&mut turned),
            ];
            launch(device, "wrap_copies", 32, 4096 + 8, &arguments)?;
            Ok(vec![Output::new("to", &to.read()?), Output::new("turned", &turned.read()?)])
        })
        .expect("to", to, 0.0)
        .expect("turned", turned, 0.0)
    })
}
