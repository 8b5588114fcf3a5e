//! What the driver's errors mean, in words that say what to do.

use cudarc::driver::{DriverError, sys::CUresult};

use crate::Error;

/// CUDA 13.0, as the driver numbers it: what the kernels are compiled with.
const OLDEST_DRIVER: i32 = 13000;

/// What the driver said of a call.
pub(super) fn failed(what: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |DriverError(code)| fault(what, code)
}

/// The error of a call that came back with that code.
pub(super) fn fault(what: &str, code: CUresult) -> Error {
    Error::Device(match advice(code) {
        Some(advice) => format!("{advice} ({what}: {code:?})"),
        None => format!("{what}: {code:?}"),
    })
}

pub(super) fn no_driver() -> Error {
    Error::Device(
        "no NVIDIA driver: libcuda.so.1 was not found; install the driver (580 or later), or give the container its \
         GPUs (--gpus all)"
            .into(),
    )
}

/// Whether a driver is new enough for the kernels.
pub(super) fn check_version(version: i32) -> Result<(), Error> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let (major, minor) = (version / 1000, version % 1000 / 10);
    Err(Error::Device(format!(
        "the NVIDIA driver is for CUDA {major}.{minor}; 13.0 is needed: install driver 580 or later"
    )))
}

/// Whether a GPU is new enough for the kernels.
pub(super) fn check_architecture(name: &str, architecture: u32) -> Result<(), Error> {
    if architecture >= 80 {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the GPU {name} is of architecture sm_{architecture}; sm_80 (A100, RTX 30 …) or later is needed"
    )))
}

fn advice(code: CUresult) -> Option<&'static str> {
    use CUresult as C;
    Some(match code {
        C::CUDA_ERROR_NO_DEVICE => {
            "the NVIDIA driver sees no GPU: look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and whether the container was \
             given any (--gpus all)"
        }
        C::CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so.1 that was found is the toolkit's stub and no driver: take its folder out of \
             LD_LIBRARY_PATH"
        }
        C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and its kernel module are of different versions: restart the machine, or give the \
             container the host's library"
        }
        C::CUDA_ERROR_SYSTEM_NOT_READY => "the GPUs are not ready: start nvidia-fabricmanager",
        C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "CUDA's compatibility library does not work with this GPU: install driver 580 or later"
        }
        C::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another process has the GPU for itself: end it, or let several use it (nvidia-smi -c 0)"
        }
        C::CUDA_ERROR_OUT_OF_MEMORY => {
            "the GPU's memory is full: end what else uses it (nvidia-smi lists it)"
        }
        C::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "the GPU's memory is faulty: reset it (nvidia-smi -r), or take another"
        }
        // After these nothing works any more in this process.
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_LAUNCH_TIMEOUT => "a kernel has failed, and this process must be started again",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_happened_and_what_to_do_in_a_line() {
        let says = |code| fault("opening the GPU", code).to_string();
        for (code, words) in [
            (CUresult::CUDA_ERROR_NO_DEVICE, "CUDA_VISIBLE_DEVICES"),
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, "end what else uses it"),
            (CUresult::CUDA_ERROR_SYSTEM_NOT_READY, "nvidia-fabricmanager"),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "must be started again"),
        ] {
            let text = says(code);
            assert!(
                text.contains(words) && text.ends_with(&format!("(opening the GPU: {code:?})")),
                "{text}"
            );
            assert!(!text.contains('\n') && !text.contains("  "), "{text}");
        }
        assert_eq!(says(CUresult::CUDA_ERROR_UNKNOWN), "opening the GPU: CUDA_ERROR_UNKNOWN");
    }

    #[test]
    fn drivers_and_gpus_that_are_too_old_are_refused() {
        assert!(check_version(13000).is_ok() && check_version(13010).is_ok());
        let old = check_version(12080).unwrap_err().to_string();
        assert!(old.contains("for CUDA 12.8;") && old.contains("driver 580"), "{old}");
        assert!(check_architecture("H100", 90).is_ok() && check_architecture("A100", 80).is_ok());
        let old = check_architecture("Tesla T4", 75).unwrap_err().to_string();
        assert!(old.contains("Tesla T4 is of architecture sm_75; sm_80"), "{old}");
    }
}
