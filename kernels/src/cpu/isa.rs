//! Which instruction set the CPU kernels use. All of them compute the same bits: only the speed differs.

/// An instruction set that this machine was found to have: the only way to get one is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The instruction sets that kernels are written for, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust; fast where the compiler vectorizes it (NEON).
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ) with VNNI.
    Avx512,
}

// === impl Isa ===

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self(Level::Portable))
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Self> {
        let levels = [Level::Portable, Level::Avx2, Level::Avx512];
        levels.into_iter().filter(|&level| has(level)).map(Self).collect()
    }

    /// Which one it is.
    pub fn level(self) -> Level {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn has(level: Level) -> bool {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni");
    match level {
        Level::Portable => true,
        Level::Avx2 => avx2,
        Level::Avx512 => avx2 && avx512,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(level: Level) -> bool {
    level == Level::Portable
}
