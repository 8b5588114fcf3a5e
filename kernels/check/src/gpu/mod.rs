//! The check on a machine with a GPU: every case against its reference, then every timing beside its limit.
//!
//! ```text
//! correct.rs   the cases; each twice, which must give the same bits
//! limits.rs    what the device can do: a copy's bandwidth, cublasLt's rate
//! timing.rs    the median time of a step, launched as graphs
//! peers.rs     cublasLt and PyTorch at the shapes of a timing
//! table.rs     what is printed and kept
//! ```

mod correct;
mod limits;
mod peers;
mod table;
mod timing;

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use volley_kernels::cuda::{Cuda, Device};

use crate::{Operation, operations};
use table::Row;

/// What is checked.
#[derive(Debug, Default)]
pub struct Options {
    /// Nothing is run: only the least times that the timings can take on an H100.
    pub floors: bool,
    /// Only the small cases, and no timing: for the compute-sanitizer, which makes everything slow.
    pub small: bool,
    /// At most so many cases of each operation.
    pub each: Option<usize>,
    /// Only this operation.
    pub only: Option<String>,
    /// The script that times PyTorch's attention.
    pub sdpa: Option<PathBuf>,
    /// Where the table of timings goes, as Markdown.
    pub results: Option<PathBuf>,
}

/// Runs the check. False if a kernel is wrong; an error if there is no GPU, or it failed.
pub fn run(options: &Options) -> Result<bool> {
    if options.floors {
        print!("{}", table::floors(&operations()));
        return Ok(true);
    }
    let cuda = Arc::new(Cuda::open(0).context("no GPU to check the kernels on")?);
    let device: Arc<dyn Device> = cuda.clone();
    println!("{}: {:?}", device.properties().name, device.properties());
    let chosen = |operation: &Operation| options.only.as_ref().is_none_or(|only| only == operation.name);
    let operations: Vec<Operation> = operations().into_iter().filter(chosen).collect();

    let mut right = true;
    let mut summaries = Vec::new();
    for operation in &operations {
        let summary = correct::check(operation, &device, options);
        right &= summary.failures.is_empty();
        println!("{summary}");
        summaries.push(summary);
    }
    let rows = if options.small { Vec::new() } else { timings(&operations, &cuda, &device, options)? };
    let report = table::report(&device.properties().name, &summaries, &rows);
    if let Some(path) = &options.results {
        fs::write(path, &report).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("\n{report}");
    Ok(right)
}

fn timings(
    operations: &[Operation],
    cuda: &Arc<Cuda>,
    device: &Arc<dyn Device>,
    options: &Options,
) -> Result<Vec<Row>> {
    let limits = limits::measure(cuda, device)?;
    println!("{limits}");
    let speeds: Vec<_> = operations
        .iter()
        .flat_map(|operation| (operation.speeds)().into_iter().map(|s| (operation.name, s)))
        .collect();
    let peers =
        peers::Peers::new(cuda, options.sdpa.as_deref(), speeds.iter().filter_map(|(_, speed)| speed.peer));
    let mut rows = Vec::new();
    for (operation, speed) in &speeds {
        let seconds = timing::measure(speed, device).with_context(|| format!("{operation}, {}", speed.label));
        let peer = speed.peer.and_then(|peer| peers.seconds(peer, device));
        let row = Row::new(operation, speed, seconds.map_err(|error| format!("{error:#}")), peer, &limits);
        println!("{row}");
        rows.push(row);
    }
    Ok(rows)
}
