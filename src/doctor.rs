//! `volley doctor`: what there is to compute with, in lines for people.

use std::fmt::Write;

use volley_worker::{Gpu, Machine, StepSize};

/// The report.
pub(crate) fn report(machine: &Machine) -> String {
    let mut text = String::new();
    let mut line = |what: &str, says: String| {
        let _ = writeln!(text, "{what:8}{says}"); // a string takes all
    };
    let Machine { instructions, threads, memory, kernels, gpus } = machine;
    line("CPU", format!("{instructions}, {threads} threads, {} free", gb(*memory)));
    line("kernels", format!("{kernels} for NVIDIA GPUs are in this binary; no CUDA needs to be installed"));
    match gpus {
        Err(problem) => line("driver", problem.clone()),
        Ok(gpus) if gpus.is_empty() => line("driver", "is there, but sees no GPU".into()),
        Ok(gpus) => {
            for (index, gpu) in gpus.iter().enumerate() {
                line(&format!("cuda:{index}"), gpu.as_ref().map_or_else(Clone::clone, describe));
            }
        }
    }
    let usable = gpus.as_ref().is_ok_and(|gpus| matches!(gpus.first(), Some(Ok(_))));
    let count = gpus.as_ref().map_or(0, Vec::len);
    line(
        "device",
        match (usable, count) {
            (false, _) => "--device auto computes on the CPU".into(),
            (true, 1) => "--device auto computes on cuda:0".into(),
            (true, _) => format!("--device auto computes on cuda:0; `volley serve` on all {count} GPUs"),
        },
    );
    let StepSize { max_batch_tokens, max_sequences } = if usable { StepSize::GPU } else { StepSize::CPU };
    let less = if usable { ", less where a model leaves it little memory" } else { "" };
    line(
        "steps",
        format!("--max-batch-tokens {max_batch_tokens} and --max-sequences {max_sequences} by default{less}"),
    );
    text
}

fn describe(gpu: &Gpu) -> String {
    let Gpu { name, architecture, kernels, free, total } = gpu;
    format!("{name}, sm_{architecture}, {} of {} free, {kernels} kernels run on it", gb(*free), gb(*total))
}

fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_there_and_what_is_taken() {
        let mut machine = Machine {
            instructions: "Avx2".into(),
            threads: 2,
            memory: 3 << 30,
            kernels: 90,
            gpus: Err("no driver".into()),
        };
        let text = report(&machine);
        assert!(
            text.contains("driver  no driver\n") && text.contains("auto computes on the CPU\n"),
            "{text}"
        );
        assert!(
            text.ends_with("steps   --max-batch-tokens 512 and --max-sequences 64 by default\n"),
            "{text}"
        );
        let gpu = Gpu { name: "H100".into(), architecture: 90, kernels: 88, free: 70 << 30, total: 80 << 30 };
        machine.gpus = Ok(vec![Ok(gpu.clone())]);
        assert!(report(&machine).contains("auto computes on cuda:0\nsteps   --max-batch-tokens 8192 and"));
        machine.gpus = Ok(vec![Ok(gpu), Err("broken".into())]);
        let text = report(&machine);
        assert!(text.contains("cuda:0  H100, sm_90, 75.2 GB of 85.9 GB free, 88 kernels"), "{text}");
        assert!(
            text.contains("cuda:1  broken\n") && text.contains("cuda:0; `volley serve` on all 2 GPUs\n"),
            "{text}"
        );
        machine.gpus = Ok(vec![]);
        assert!(report(&machine).contains("sees no GPU\ndevice  --device auto computes on the CPU\n"));
    }
}
