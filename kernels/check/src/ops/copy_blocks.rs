//! Copies of whole KV pages.

use volley_kernels::cuda::{
    Memory,
    ops::{CopyBlocks, copy_blocks},
};

use super::Operation;
use crate::{Case, Output, Random, Speed, Trial, Work};

pub(super) fn operation() -> Operation {
    Operation { name: "copy_blocks", kernels: &["copy_blocks"], cases, any, speeds }
}

fn cases(random: &mut Random) -> Vec<Case> {
    let mut cases = vec![case(1, 2, 16, 1), case(3, 9, 2048, 4), case(2, 5, 12304, 2), case(2, 4, 64, 0)];
    cases.extend((0..3).map(|_| any(random)));
    cases
}

fn any(random: &mut Random) -> Case {
    let (layers, pages) = (random.between(1, 4), random.between(2, 12));
    case(layers, pages, 16 * random.between(1, 200), random.between(0, pages / 2))
}

fn case(layers: usize, pages: usize, page_bytes: usize, copies: usize) -> Case {
    Case::small(format!("{copies} of {pages} pages of {page_bytes} B in {layers} layers"), move |random| {
        let cache = random.bytes(layers * pages * page_bytes);
        let order = random.permutation(pages);
        // Half of the pages are copied from, the other half to; and one pair names a page that isn't there.
        let mut pairs: Vec<u32> =
            (0..copies).flat_map(|i| [order[i] as u32, order[pages - 1 - i] as u32]).collect();
        let mut copied = cache.clone();
        for layer in copied.chunks_mut(pages * page_bytes) {
            for pair in pairs.chunks(2) {
                let from = pair[0] as usize * page_bytes;
                layer.copy_within(from..from + page_bytes, pair[1] as usize * page_bytes);
            }
        }
        pairs.extend([0, pages as u32]);
        Trial::new(move |device| {
            let (mut cache, pairs) =
                (Memory::from_slice(device, &cache)?, Memory::from_slice(device, &pairs)?);
            let op = CopyBlocks { cache: cache.view_mut(), pairs: pairs.view(), layers, pages, page_bytes };
            copy_blocks(&**device, &op)?;
            Ok(vec![Output::new("cache", &cache.read()?)])
        })
        .expect("cache", copied.iter().map(|&byte| f64::from(byte)).collect(), 0.0)
    })
}

fn speeds() -> Vec<Speed> {
    let (layers, pages, page_bytes) = (32, 512, 32768);
    let bytes = layers * pages * page_bytes; // half of the pages read, half written
    vec![Speed::new("256 pages of 32 KiB in 32 layers", Work::Bytes(bytes as f64), 0.8, move |device| {
        let device = device.clone();
        let mut cache = Memory::filled(&device, layers * pages * page_bytes, 1)?;
        let pairs: Vec<u32> = (0..pages as u32 / 2).flat_map(|i| [2 * i, 2 * i + 1]).collect();
        let pairs = Memory::from_slice(&device, &pairs)?;
        Ok(Box::new(move |_| {
            let op = CopyBlocks { cache: cache.view_mut(), pairs: pairs.view(), layers, pages, page_bytes };
            copy_blocks(&*device, &op)
        }))
    })]
}
