//! Embedding gather.

use half::bf16;
use volley_kernels::cuda::{
    Memory,
    ops::{DRAWN, Embed, embed},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work, unwritten};

pub(super) fn operation() -> Operation {
    Operation { name: "embed", kernels: &["embed"], cases, any, speeds }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = vec![case(1, 1, 8, 1.0), case(7, 50, 576, 1.0), case(3, 9, 2304, 48.0)];
    cases.extend((0..4).map(|_| any(random)));
    cases
}

fn any(random: &mut Random) -> Case {
    case(random.between(1, 20), random.between(1, 90), 8 * random.between(1, 80), 1.0)
}

fn case(rows: usize, vocabulary: usize, columns: usize, scale: f32) -> Case {
    Case::small(format!("{rows} of {vocabulary} × {columns}, by {scale}"), move |random| {
        let table = random.bf16(vocabulary * columns, 1.0);
        // The last row's token is outside the vocabulary.
        let mut tokens: Vec<u32> = (0..rows).map(|_| random.between(0, vocabulary - 1) as u32).collect();
        if let [_, .., last] = &mut tokens[..] {
            *last = vocabulary as u32;
        }
        // Every third is what was drawn, and is told by its number.
        let (mut told, mut drawn) = (tokens.clone(), Vec::new());
        for token in told.iter_mut().skip(1).step_by(3) {
            drawn.push(std::mem::replace(token, DRAWN + drawn.len() as u32));
        }
        let number = |&token: &u32| {
            let row = table.chunks(columns).nth(token as usize).map(<[bf16]>::to_vec);
            row.unwrap_or_else(|| vec![bf16::ZERO; columns])
        };
        let scaled = |x: bf16| bf16::from_f32(x.to_f32() * scale).to_f64();
        let out = tokens.iter().flat_map(number).map(scaled).collect();
        Trial::new(move |device| {
            let (table, tokens) = (Memory::from_slice(device, &table)?, Memory::from_slice(device, &told)?);
            let drawn = Memory::from_slice(device, &drawn)?;
            let mut out = unwritten(device, rows * columns)?;
            let op = Embed {
                tokens: tokens.view(),
                drawn: Some(drawn.view()),
                table: table.view(),
                out: out.view_mut(),
                columns,
                scale,
            };
            embed(&**device, &op)?;
            Ok(vec![Output::new("out", &out.read()?)])
        })
        .expect("out", out, 0.0)
    })
}

fn speeds() -> Vec<Speed> {
    let (rows, vocabulary, columns) = (8192, 128_256, 4096);
    let bytes = rows * (4 + 4 * columns);
    vec![Speed::new(format!("{rows} × {columns}"), Work::Bytes(bytes as f64), 0.8, move |device| {
        let device = device.clone();
        let tokens: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
        let tokens = Memory::from_slice(&device, &tokens)?;
        let table = Memory::filled(&device, vocabulary * columns, 0x11)?;
        let mut out = Memory::<bf16>::new(&device, rows * columns)?;
        Ok(Box::new(move |_| {
            let op = Embed {
                tokens: tokens.view(),
                drawn: None,
                table: table.view(),
                out: out.view_mut(),
                columns,
                scale: 1.0,
            };
            embed(&*device, &op)
        }))
    })]
}
