//! `volley doctor`: what there is to compute with, in lines for people.

use std::fmt::Write;

use volley_worker::{Gpu, Machine};

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
    let first = gpus.as_ref().ok().and_then(|gpus| gpus.first());
    line(
        "device",
        match first {
            Some(Ok(_)) => "--device auto computes on cuda:0".into(),
            _ => "--device auto computes on the CPU".into(),
        },
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
            text.contains("driver  no driver\n") && text.ends_with("auto computes on the CPU\n"),
            "{text}"
        );
        let gpu = Gpu { name: "H100".into(), architecture: 90, kernels: 88, free: 70 << 30, total: 80 << 30 };
        machine.gpus = Ok(vec![Ok(gpu), Err("broken".into())]);
        let text = report(&machine);
        assert!(text.contains("cuda:0  H100, sm_90, 75.2 GB of 85.9 GB free, 88 kernels"), "{text}");
        assert!(text.contains("cuda:1  broken\n") && text.ends_with("auto computes on cuda:0\n"), "{text}");
        machine.gpus = Ok(vec![]);
        assert!(report(&machine).ends_with("sees no GPU\ndevice  --device auto computes on the CPU\n"));
    }
}
