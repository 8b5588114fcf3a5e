//! What ranks of a group add up and gather, by way of this machine's memory: each waits for its device, leaves what it
//! has and takes what all left. Sums are in f32 in the order of ranks, rounded once; so every rank has the same bits.
//! GPUs that can add up among themselves do it in their own order, without waiting for the host.

use half::bf16;

use crate::{Error, Peers, cuda::Memory};

/// A rank's end of what adds up over a group's devices.
pub trait AllReduce: Send + Sync {
    /// The first so many numbers become their sums over all ranks, after the device's work so far.
    fn sum(&self, memory: &mut Memory<bf16>, numbers: usize) -> Result<(), Error>;
    /// Ends what waits for other ranks, on all of them.
    fn abort(&self);
}

/// `addend = Σ part` over all ranks, of the first so many numbers.
pub(super) fn sum(
    peers: &Peers,
    part: &Memory<f32>,
    numbers: usize,
    addend: &mut Memory<bf16>,
) -> Result<(), Error> {
    let leave = |mine: &mut [f32]| {
        mine.copy_from_slice(&part.read_part(0..numbers)?);
        Ok(())
    };
    let sums: Vec<bf16> = peers.exchange(numbers, leave, |parts| {
        let sum = |i| bf16::from_f32(parts.iter().map(|part| part[i]).sum());
        (0..numbers).map(sum).collect()
    })?;
    addend.write_at(0, &sums)
}

/// Puts rows of logits together on the first rank, of which each rank has `columns`, in rows `stride` apart.
pub(super) fn gather(
    peers: &Peers,
    rows: usize,
    columns: usize,
    logits: &mut Memory<f32>,
    stride: usize,
) -> Result<(), Error> {
    let leave = |mine: &mut [f32]| {
        let all = logits.read_part(0..rows * stride)?;
        for (mine, row) in mine.chunks_exact_mut(columns).zip(all.chunks_exact(stride)) {
            mine.copy_from_slice(&row[..columns]);
        }
        Ok(())
    };
    let all = peers.exchange(rows * columns, leave, |parts| {
        let mut all = vec![0.0; if peers.rank() == 0 { rows * stride } else { 0 }];
        for (i, row) in all.chunks_exact_mut(stride).enumerate() {
            let of_row =
                parts.iter().flat_map(|part| &part[part.len() / rows * i..part.len() / rows * (i + 1)]);
            row.iter_mut().zip(of_row).for_each(|(out, logit)| *out = *logit);
        }
        all
    })?;
    if peers.rank() == 0 { logits.write_at(0, &all) } else { Ok(()) }
}
