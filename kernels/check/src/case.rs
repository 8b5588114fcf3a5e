//! One shape of an operation: its inputs, what the reference makes of them, and how it is launched.

use std::sync::Arc;

use volley_kernels::{
    Error,
    cuda::{Device, Element, Memory},
};

use crate::{Random, compare};

/// Where a case can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Everywhere: on the twin within about 50 ms a schedule, under the compute-sanitizer, on a GPU.
    Small,
    /// On a GPU only.
    Large,
}

/// One shape at which an operation is held against its reference.
pub struct Case {
    /// The shape, for people.
    pub label: String,
    /// Where it runs.
    pub size: Size,
    /// The compute capabilities for which launchers choose different kernels; the twin is run as each.
    pub archs: &'static [u32],
    make: Box<dyn Fn(&mut Random) -> Trial + Send + Sync>,
}

/// Inputs, the launch, and what it should give.
pub struct Trial {
    run: Box<Run>,
    expected: Vec<Expected>,
    same: Vec<(&'static str, &'static str)>,
}

type Run = dyn Fn(&Arc<dyn Device>) -> Result<Vec<Output>, Error>;

/// What a launch gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its role.
    pub name: &'static str,
    /// Its elements.
    pub values: Vec<f64>,
}

struct Expected {
    name: &'static str,
    values: Vec<f64>,
    tolerance: f64,
}

/// A trial that held.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was computed.
    pub outputs: Vec<Output>,
    /// The largest ‖out − reference‖ / ‖reference‖.
    pub error: f64,
}

/// Memory whose every bit is set, as NaN: what a kernel leaves out shows.
pub fn unwritten<T: Element>(device: &Arc<dyn Device>, len: usize) -> Result<Memory<T>, Error> {
    Memory::filled(device, len, 0xff)
}

// === impl Case ===

impl Case {
    /// A case that runs everywhere.
    pub fn small(
        label: impl Into<String>,
        make: impl Fn(&mut Random) -> Trial + Send + Sync + 'static,
    ) -> Self {
        Self { label: label.into(), size: Size::Small, archs: &[90], make: Box::new(make) }
    }

    /// A case for GPUs.
    pub fn large(
        label: impl Into<String>,
        make: impl Fn(&mut Random) -> Trial + Send + Sync + 'static,
    ) -> Self {
        Self { size: Size::Large, ..Self::small(label, make) }
    }

    /// To be run as each of these.
    pub fn on(self, archs: &'static [u32]) -> Self {
        Self { archs, ..self }
    }

    /// Draws its inputs, and computes the reference.
    pub fn trial(&self, seed: u64) -> Trial {
        (self.make)(&mut Random::new(seed))
    }
}

// === impl Trial ===

impl Trial {
    /// What is uploaded, launched and read back.
    pub fn new(run: impl Fn(&Arc<dyn Device>) -> Result<Vec<Output>, Error> + 'static) -> Self {
        Self { run: Box::new(run), expected: Vec::new(), same: Vec::new() }
    }

    /// The reference's values of an output; `tolerance` bounds ‖out − reference‖ / ‖reference‖, and 0 means equal.
    pub fn expect(mut self, name: &'static str, values: Vec<f64>, tolerance: f64) -> Self {
        self.expected.push(Expected { name, values, tolerance });
        self
    }

    /// Two outputs that must be the same bits: a row alone and among others, say.
    pub fn same(mut self, one: &'static str, other: &'static str) -> Self {
        self.same.push((one, other));
        self
    }

    /// Runs it, and says what differs from the reference.
    pub fn run(&self, device: &Arc<dyn Device>) -> Result<Outcome, String> {
        let outputs = (self.run)(device).map_err(|error| error.to_string())?;
        let find = |name: &str| {
            let output = outputs.iter().find(|output| output.name == name);
            output.map(|output| &output.values).ok_or_else(|| format!("there is no output {name}"))
        };
        let mut error = 0.0f64;
        for expected in &self.expected {
            let values = find(expected.name)?;
            let distance = compare::within(values, &expected.values, expected.tolerance);
            error = error.max(distance.map_err(|problem| format!("{}: {problem}", expected.name))?);
        }
        for (one, other) in &self.same {
            compare::same(find(one)?, find(other)?)
                .map_err(|problem| format!("{one} is not {other}: {problem}"))?;
        }
        Ok(Outcome { outputs, error })
    }
}

// === impl Outcome ===

impl Outcome {
    /// Whether another run gave the same bits.
    pub fn same_bits(&self, other: &Self) -> bool {
        let same =
            |(a, b): (&Output, &Output)| a.name == b.name && compare::same(&a.values, &b.values).is_ok();
        self.outputs.len() == other.outputs.len() && self.outputs.iter().zip(&other.outputs).all(same)
    }
}

// === impl Output ===

impl Output {
    /// From what was read back.
    pub fn new<T: Element + ToF64>(name: &'static str, values: &[T]) -> Self {
        Self { name, values: values.iter().map(|value| value.to_f64()).collect() }
    }
}

/// Numbers that f64 holds exactly.
pub trait ToF64 {
    /// The same number.
    fn to_f64(self) -> f64;
}

macro_rules! to_f64 {
    ($($t:ty: $value:ident => $f64:expr),* $(,)?) => { $(
        impl ToF64 for $t {
            fn to_f64(self) -> f64 {
                let $value = self;
                $f64
            }
        }
    )* };
}
to_f64! {
    u8: v => v.into(), i8: v => v.into(), u16: v => v.into(), i32: v => v.into(), u32: v => v.into(), f32: v => v.into(),
    half::bf16: v => v.to_f64(), half::f16: v => v.to_f64(),
}
