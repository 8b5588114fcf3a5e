//! The compiled kernels. Written by `kernels/cuda/build`.

/// One source file, compiled.
pub struct Fatbin {
    /// Its name in `kernels/cuda`, without `.cu`.
    pub source: &'static str,
    /// Its entries.
    pub kernels: &'static [&'static str],
    /// Machine code for several architectures, and PTX for the rest.
    pub image: &'static [u8],
}

/// All of them.
pub static FATBINS: &[Fatbin] = &[];
