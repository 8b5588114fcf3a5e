//! The median time of a step.

use std::sync::Arc;

use volley_kernels::{Error, cuda::Device};

use crate::Speed;

const WARM_UP: usize = 3;
const TIMED: usize = 11;

/// Seconds that a step of a timing takes.
pub(super) fn measure(speed: &Speed, device: &Arc<dyn Device>) -> Result<f64, Error> {
    median(device, speed.steps, (speed.set_up)(device)?)
}

/// Seconds that a step takes: `steps` of them in a graph, which is launched several times, timed by events.
pub(super) fn median(
    device: &Arc<dyn Device>,
    steps: usize,
    mut step: impl FnMut(usize) -> Result<(), Error>,
) -> Result<f64, Error> {
    step(0)?; // first launches set attributes and load code, which can't be captured
    device.synchronize()?;
    let graph = device.capture(&mut || (0..steps).try_for_each(&mut step))?;
    let mut times = Vec::with_capacity(TIMED);
    for i in 0..WARM_UP + TIMED {
        #[allow(unsafe_code)]
        // SAFETY: the memory that the steps use is held by `step`, which is still here.
        let time = device.time(&mut || unsafe { graph.launch() })?;
        if i >= WARM_UP {
            times.push(time.as_secs_f64() / steps as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMED / 2])
}
