//! `kernel-check`: the CUDA kernels on the GPU of this machine. `tests/gpu/run kernels` calls it.
//!
//! Ends with 0 when every kernel is right, 1 when one is wrong, 3 when there is no GPU to tell.
//! `--floors` needs no GPU: it says how long each timing takes at least.

use std::process::ExitCode;

use volley_kernel_check::gpu::{self, Options};

const USAGE: &str =
    "kernel-check [--small] [--each N] [--only OPERATION] [--sdpa SCRIPT] [--results FILE] | --floors";

fn options() -> Option<Options> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--floors" => options.floors = true,
            "--small" => options.small = true,
            "--each" => options.each = Some(arguments.next()?.parse().ok()?),
            "--only" => options.only = Some(arguments.next()?),
            "--sdpa" => options.sdpa = Some(arguments.next()?.into()),
            "--results" => options.results = Some(arguments.next()?.into()),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match gpu::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(3)
        }
    }
}
