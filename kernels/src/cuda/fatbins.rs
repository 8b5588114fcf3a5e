//! The compiled kernels. Everything from `FATBINS` on is written by `kernels/cuda/build`.

/// One source file, compiled.
#[derive(Debug)]
pub struct Fatbin {
    /// Its name in `kernels/cuda`, without `.cu`.
    pub source: &'static str,
    /// Of the source, what it includes and the toolchain.
    pub hash: &'static str,
    /// Its entries.
    pub kernels: &'static [&'static str],
    /// Machine code for several architectures, and PTX for the rest.
    pub image: &'static [u8],
}

/// All of them.
#[rustfmt::skip]
pub static FATBINS: &[Fatbin] = &[
    Fatbin {
        source: "rms_norm",
        hash: "e2e3cb581c43c94eb0fce79ca1b6223ea4f27d5ef2d0c51c47c22c5cd7b6988b",
        kernels: &[
            "rms_norm_1",
            "rms_norm_2",
            "rms_norm_4",
            "rms_norm_8",
        ],
        image: include_bytes!("../../cuda/fatbin/rms_norm.fatbin"),
    },
];
