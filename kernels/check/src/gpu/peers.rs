//! Other implementations at the same shapes.

use std::{collections::HashMap, path::Path, process::Command, sync::Arc};

use half::bf16;
use volley_kernels::{
    Error,
    cuda::{CublasLt, Cuda, Device, Memory},
};

use super::timing;
use crate::{Peer, Random};

/// Bytes of weights that a product rotates over, so that none comes out of the cache.
const WEIGHTS: usize = 256 << 20;

/// What can be timed beside ours.
pub(super) struct Peers {
    library: Option<CublasLt>,
    /// Seconds, by what [`argument`] makes of the shape.
    attention: HashMap<String, f64>,
}

// === impl Peers ===

impl Peers {
    /// Opens cublasLt, and times PyTorch's attention at all shapes at once: starting it takes seconds.
    pub(super) fn new(cuda: &Arc<Cuda>, sdpa: Option<&Path>, peers: impl Iterator<Item = Peer>) -> Self {
        let shapes: Vec<String> = peers.filter_map(argument).collect();
        let attention = match sdpa {
            Some(script) if !shapes.is_empty() => run_script(script, &shapes).unwrap_or_else(|problem| {
                println!("PyTorch is left out: {problem}");
                HashMap::new()
            }),
            _ => HashMap::new(),
        };
        Self { library: CublasLt::open(cuda).ok(), attention }
    }

    /// Seconds, if it could be timed.
    pub(super) fn seconds(&self, peer: Peer, device: &Arc<dyn Device>) -> Option<f64> {
        let Peer::MatMul { m, n, k } = peer else {
            return self.attention.get(&argument(peer)?).copied();
        };
        let timed = self.library.as_ref().map(|library| product(library, device, m, n, k))?;
        timed.map_err(|error| println!("cublasLt at {m} × {n} × {k}: {error}")).ok()
    }
}

fn argument(peer: Peer) -> Option<String> {
    match peer {
        Peer::Attention { batch, heads, kv_heads, queries, keys, dim } => {
            Some(format!("{batch},{heads},{kv_heads},{queries},{keys},{dim}"))
        }
        Peer::MatMul { .. } => None,
    }
}

fn run_script(script: &Path, shapes: &[String]) -> Result<HashMap<String, f64>, String> {
    let output =
        Command::new("python3").arg(script).args(shapes).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().last().unwrap_or("it failed").to_owned());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |line: &str| {
        line.split_once(' ').and_then(|(shape, time)| Some((shape.to_owned(), time.parse().ok()?)))
    };
    Ok(said.lines().filter_map(line).collect())
}

fn product(library: &CublasLt, device: &Arc<dyn Device>, m: usize, n: usize, k: usize) -> Result<f64, Error> {
    let plan = library.plan(m, n, k)?;
    let block = Random::new(2).bf16(1 << 20, 1.0);
    let some = |len: usize| block.iter().copied().cycle().take(len).collect::<Vec<bf16>>();
    let x = Memory::from_slice(device, &some(m * k))?;
    let sets = (WEIGHTS / (2 * n * k)).clamp(1, 64);
    let weights = Memory::from_slice(device, &some(sets * n * k))?;
    let mut out = Memory::<bf16>::new(device, m * n)?;
    timing::median(device, sets.max(10), |i| {
        let set = i % sets * n * k;
        plan.run(x.view(), weights.view().slice(set..set + n * k), &out.view_mut())
    })
}
