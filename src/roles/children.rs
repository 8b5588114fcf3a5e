//! How `volley serve` shares a machine out among its workers. Decides only; starts nothing.

use std::ffi::OsString;

use super::Error;
use crate::{
    cli::{Device, EngineArgs, ServeArgs, TelemetryArgs},
    models::Model,
};

/// What there is to share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// GPUs that there are for `--device`; 0: the CPU computes.
    pub(super) gpus: usize,
    /// Threads that run side by side.
    pub(super) cores: usize,
    /// Bytes that are free.
    pub(super) memory: u64,
}

/// What a worker process gets of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Child {
    device: Device,
    threads: usize,
    kv_cache_gb: Option<f64>,
    gpu_memory_fraction: f64,
}

/// What is to be loaded.
pub(super) struct Models {
    pub(super) model: Model,
    pub(super) draft: Option<std::path::PathBuf>,
}

/// The worker processes; none: a worker in this process.
pub(super) fn share(args: &ServeArgs, machine: Machine) -> Vec<Child> {
    let (engine, Machine { gpus, cores, memory }) = (&args.engine, machine);
    // A worker has as many as it has ranks.
    let groups = match engine.device {
        Device::Cuda(Some(_)) => 1,
        _ => (gpus / engine.tensor_parallel).max(1),
    };
    let count = args.workers.map_or(groups, usize::from);
    if gpus == 0 && count == 1 {
        return Vec::new();
    }
    let threads = engine.threads.unwrap_or((cores / count).max(1));
    let place = |number: usize| match engine.device {
        _ if gpus == 0 => Device::Cpu,
        Device::Cuda(Some(index)) => Device::Cuda(Some(index)),
        _ => Device::Cuda(Some(number % groups * engine.tensor_parallel)),
    };
    let child = |number: usize| {
        let device = place(number);
        // Together, those of a device take what one would.
        let beside = (0..count).filter(|other| place(*other) == device).count() as f64;
        let kv_cache_gb = match (engine.kv_cache_gb, gpus) {
            (Some(asked), _) => Some(asked / beside),
            (None, 0) => Some(memory as f64 / 4e9 / beside),
            (None, _) => None,
        };
        Child { device, threads, kv_cache_gb, gpu_memory_fraction: engine.gpu_memory_fraction / beside }
    };
    (0..count).map(child).collect()
}

// === impl Child ===

impl Child {
    /// `volley worker …`: all that holds for a child is on its command line.
    pub(super) fn command(
        &self,
        engine: &EngineArgs,
        telemetry: &TelemetryArgs,
        models: &Models,
    ) -> Result<Vec<OsString>, Error> {
        let program = std::env::current_exe()
            .map_err(|source| Error::System { doing: "cannot find this program's own file", source })?;
        let mut command: Vec<OsString> = vec![program.into(), "worker".into(), "--supervised".into()];
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            command.push(name.into());
            command.push(value.as_ref().into());
        };
        flag("--listen", &"127.0.0.1:0");
        flag("--model", &models.model.path);
        flag("--model-name", &models.model.name);
        if let Some(draft) = &models.draft {
            flag("--draft-model", draft);
        }
        flag("--device", &self.device.to_string());
        flag("--tensor-parallel", &engine.tensor_parallel.to_string());
        flag("--threads", &self.threads.to_string());
        flag("--gpu-memory-fraction", &self.gpu_memory_fraction.to_string());
        flag("--quantization", &engine.quantization.to_string());
        flag("--activations", &engine.activations.to_string());
        flag("--pooling", &engine.pooling.to_string());
        flag("--log", &telemetry.log.as_deref().unwrap_or("warn"));
        flag("--log-format", &telemetry.log_format.to_string());
        if !engine.test_abort_on_tokens.is_empty() {
            let tokens: Vec<_> = engine.test_abort_on_tokens.iter().map(u32::to_string).collect();
            flag("--test-abort-on-tokens", &tokens.join(","));
        }
        let mut if_given = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                flag(name, &value);
            }
        };
        if_given("--max-batch-tokens", engine.max_batch_tokens.map(|rows| rows.to_string()));
        if_given("--max-sequences", engine.max_sequences.map(|count| count.to_string()));
        if_given("--step-limit", engine.step_limit.map(|seconds| seconds.to_string()));
        if_given("--kv-cache-gb", self.kv_cache_gb.map(|gb| gb.to_string()));
        if_given("--otlp-endpoint", telemetry.otlp_endpoint.clone());
        if let Some(home) = &engine.home {
            flag("--home", home);
        }
        if engine.no_cuda_graphs {
            command.push("--no-cuda-graphs".into());
        }
        if engine.deterministic {
            command.push("--deterministic".into());
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{self, Cli, Command};

    fn serve(flags: &str) -> (ServeArgs, TelemetryArgs) {
        let cli = Cli::parse_from(["volley", "serve"].into_iter().chain(flags.split_whitespace()));
        let Command::Serve(args) = cli.command else { panic!() };
        (args, cli.telemetry)
    }

    /// Device, threads, GB of cache and part of a GPU's memory of each child, on a machine of 8 cores and 40 GB.
    fn shared(flags: &str, gpus: usize) -> Vec<(String, usize, Option<f64>, f64)> {
        let machine = Machine { gpus, cores: 8, memory: 40_000_000_000 };
        let children = share(&serve(flags).0, machine).into_iter();
        children.map(|c| (c.device.to_string(), c.threads, c.kv_cache_gb, c.gpu_memory_fraction)).collect()
    }

    #[test]
    fn a_cpu_has_one_worker_in_the_process_or_as_many_as_are_asked_for() {
        assert_eq!(shared("", 0), []);
        assert_eq!(shared("--workers 1 --device cpu", 0), []);
        assert_eq!(shared("--workers 2", 0), vec![("cpu".into(), 4, Some(5.0), 0.45); 2]);
        assert_eq!(shared("--workers 2 --kv-cache-gb 3", 0), vec![("cpu".into(), 4, Some(1.5), 0.45); 2]);
    }

    #[test]
    fn each_gpu_has_a_process_of_its_own() {
        assert_eq!(shared("", 1), [("cuda:0".into(), 8, None, 0.9)]);
        let two = |fraction| ["cuda:0", "cuda:1"].map(|device| (device.to_owned(), 4, None, fraction));
        assert_eq!(shared("--device cuda", 2), two(0.9));
        assert_eq!(shared("--device auto --gpu-memory-fraction 0.5", 2), two(0.5));
        // One is named.
        assert_eq!(shared("--device cuda:1", 2), [("cuda:1".into(), 8, None, 0.9)]);
    }

    #[test]
    fn a_worker_of_several_ranks_has_as_many_gpus() {
        let of = |devices: [&str; 2]| devices.map(|device| (device.to_owned(), 4, None, 0.9));
        assert_eq!(shared("--tensor-parallel 2", 4), of(["cuda:0", "cuda:2"]));
        assert_eq!(shared("--tensor-parallel 2", 5), of(["cuda:0", "cuda:2"]));
        assert_eq!(shared("--tensor-parallel 4 --device cuda:1", 8), [("cuda:1".into(), 8, None, 0.9)]);
        // Too few: the worker says so.
        assert_eq!(shared("--tensor-parallel 4", 2), [("cuda:0".into(), 8, None, 0.9)]);
        assert_eq!(shared("--tensor-parallel 2", 0), []);
    }

    #[test]
    fn as_many_processes_as_are_asked_for_take_turns_at_the_gpus() {
        assert_eq!(shared("--workers 1", 4), [("cuda:0".into(), 8, None, 0.9)]);
        assert_eq!(shared("--workers 2 --device cuda:3", 4), vec![("cuda:3".into(), 4, None, 0.45); 2]);
        let three = shared("--workers 3 --kv-cache-gb 8", 2);
        assert_eq!(three[0], ("cuda:0".into(), 2, Some(4.0), 0.45));
        assert_eq!(three[1], ("cuda:1".into(), 2, Some(8.0), 0.9));
        assert_eq!(three[2], three[0]);
    }

    #[test]
    fn a_childs_command_line_is_understood() {
        let flags = "--workers 4 --kv-cache-gb 2 --threads 3 --home /h --pooling last --deterministic --step-limit 9 \
                     --tensor-parallel 1 --quantization int8 --no-cuda-graphs";
        let (args, telemetry) = serve(flags);
        let model = Model { path: "/m.gguf".into(), name: "m".into(), weights_hash: None };
        let models = Models { model, draft: Some("/d.gguf".into()) };
        let children = share(&args, Machine { gpus: 2, cores: 8, memory: 0 });
        let command = children[3].command(&args.engine, &telemetry, &models).unwrap();
        let Command::Worker(worker) = Cli::parse_from(command).command else { panic!() };
        let engine = worker.engine;
        assert!(worker.supervised);
        assert_eq!((engine.model.as_str(), engine.threads), ("/m.gguf", Some(3)));
        assert_eq!((engine.kv_cache_gb, engine.pooling), (Some(1.0), cli::Pooling::Last));
        assert_eq!(engine.draft_model.as_deref(), Some("/d.gguf"));
        assert_eq!((engine.home, engine.device), (Some("/h".into()), Device::Cuda(Some(1))));
        assert_eq!((engine.gpu_memory_fraction, engine.deterministic), (0.45, true));
        assert_eq!((engine.quantization, engine.no_cuda_graphs), (cli::Quantization::Int8, true));
        // What was left to defaults is left to the child's, which follow from its device.
        assert_eq!((engine.step_limit, engine.max_batch_tokens, engine.max_sequences), (Some(9), None, None));
    }
}
