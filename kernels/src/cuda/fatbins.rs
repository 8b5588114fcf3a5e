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
        source: "activation",
        hash: "223d7bc4e4d235bfe99389eff1326b9b5d74cb80234f002e6e11cacc78c53d3a",
        kernels: &[
            "gelu_erf_gated",
            "gelu_erf_plain",
            "gelu_tanh_gated",
            "gelu_tanh_plain",
            "silu_gated",
            "silu_plain",
        ],
        image: include_bytes!("../../cuda/fatbin/activation.fatbin"),
    },
    Fatbin {
        source: "attention",
        hash: "2b69be47540377433a7f3c3ebfbfaf0161526346ff91a50059e3868b2bfb3ef3",
        kernels: &[
            "attention_d128_bf16_r16",
            "attention_d128_bf16_r64",
            "attention_d128_e4m3_r16",
            "attention_d128_e4m3_r64",
            "attention_d256_bf16_r16",
            "attention_d256_bf16_r32",
            "attention_d256_e4m3_r16",
            "attention_d256_e4m3_r32",
            "attention_d64_bf16_r16",
            "attention_d64_bf16_r64",
            "attention_d64_e4m3_r16",
            "attention_d64_e4m3_r64",
            "attention_d80_bf16_r16",
            "attention_d80_bf16_r64",
            "attention_d80_e4m3_r16",
            "attention_d80_e4m3_r64",
            "attention_d96_bf16_r16",
            "attention_d96_bf16_r64",
            "attention_d96_e4m3_r16",
            "attention_d96_e4m3_r64",
        ],
        image: include_bytes!("../../cuda/fatbin/attention.fatbin"),
    },
    Fatbin {
        source: "attention_merge",
        hash: "d3d159cdcf8c0754ca709d69be5dfb1cc7c35d123ab4f607c17f3759509d02ef",
        kernels: &[
            "attention_merge",
        ],
        image: include_bytes!("../../cuda/fatbin/attention_merge.fatbin"),
    },
    Fatbin {
        source: "attention_sm90",
        hash: "5249c55c6fc65b28cdce4c47dbbf0cc0f63aa3c6086cc2c02f799973c07836e6",
        kernels: &[
            "attention_sm90_d128",
            "attention_sm90_d256",
            "attention_sm90_d64",
            "attention_sm90_d80",
            "attention_sm90_d96",
        ],
        image: include_bytes!("../../cuda/fatbin/attention_sm90.fatbin"),
    },
    Fatbin {
        source: "copy_blocks",
        hash: "28760697dffe7b79ad0ddbe8b53a319f286887f0fd680bef1d30178c473e72f4",
        kernels: &[
            "copy_blocks",
        ],
        image: include_bytes!("../../cuda/fatbin/copy_blocks.fatbin"),
    },
    Fatbin {
        source: "dequantize",
        hash: "8d8ace5c0d272d71a46f264d0d17c0fb7c77ad12c5b371c1643c016978db2d57",
        kernels: &[
            "dequantize_fp8",
            "dequantize_w4",
            "dequantize_w8",
            "dequantize_w8_grouped",
        ],
        image: include_bytes!("../../cuda/fatbin/dequantize.fatbin"),
    },
    Fatbin {
        source: "embed",
        hash: "ced8ef59331916a0527148d6b21309525e8e88637e6b5b818d9f317b70bc1c33",
        kernels: &[
            "embed",
        ],
        image: include_bytes!("../../cuda/fatbin/embed.fatbin"),
    },
    Fatbin {
        source: "gemm_bf16",
        hash: "d866e6cdb1a37bd7da7d6fe7045a607a08717183b0a683b0d74cb8fa7da59139",
        kernels: &[
            "gemm_bf16_128x128",
            "gemm_bf16_16x32",
            "gemm_bf16_64x64",
        ],
        image: include_bytes!("../../cuda/fatbin/gemm_bf16.fatbin"),
    },
    Fatbin {
        source: "gemm_packed_sm90",
        hash: "f90bce245f39da392654e4f3a63958a1d2e82d14f9cea43cd026e72dd73d2876",
        kernels: &[
            "gemm_fp8_sm90_128x128",
            "gemm_fp8_sm90_256x128",
            "gemm_w4_grouped_sm90_128x128",
            "gemm_w4_grouped_sm90_256x128",
            "gemm_w8_grouped_sm90_128x128",
            "gemm_w8_grouped_sm90_256x128",
            "gemm_w8_sm90_128x128",
            "gemm_w8_sm90_256x128",
        ],
        image: include_bytes!("../../cuda/fatbin/gemm_packed_sm90.fatbin"),
    },
    Fatbin {
        source: "gemm_sm90",
        hash: "e582f5e3cfe4892b1c56e248d6931fbb76d5c64632b314e7192ae5847ae7bf6e",
        kernels: &[
            "gemm_bf16_sm90_128x128",
            "gemm_bf16_sm90_128x256",
            "gemm_e4m3_sm90_128x128",
            "gemm_e4m3_sm90_128x256",
        ],
        image: include_bytes!("../../cuda/fatbin/gemm_sm90.fatbin"),
    },
    Fatbin {
        source: "layer_norm",
        hash: "765e10dceefe70ec6078cd7c9f4e8b22c07b6b1e31b7f51fce74daa53aad0e6b",
        kernels: &[
            "layer_norm_1",
            "layer_norm_2",
            "layer_norm_4",
            "layer_norm_8",
        ],
        image: include_bytes!("../../cuda/fatbin/layer_norm.fatbin"),
    },
    Fatbin {
        source: "logits",
        hash: "f598cab0cb079aee16c9f0f2705c9a2d42097a83012281803641e95128ac2c32",
        kernels: &[
            "logits_edit",
            "logits_restore",
        ],
        image: include_bytes!("../../cuda/fatbin/logits.fatbin"),
    },
    Fatbin {
        source: "logprobs",
        hash: "6f6c1005d036cbefadf920dfc0cd52a94909b8f56a4e01031c870ea2d5d816ca",
        kernels: &[
            "logprobs",
        ],
        image: include_bytes!("../../cuda/fatbin/logprobs.fatbin"),
    },
    Fatbin {
        source: "qkv",
        hash: "d60cd2c86ded4007b2c581d03259eba52ffa489be90e50e0fedad3a29a623223",
        kernels: &[
            "qkv_store_bf16",
            "qkv_store_e4m3",
        ],
        image: include_bytes!("../../cuda/fatbin/qkv.fatbin"),
    },
    Fatbin {
        source: "rms_norm",
        hash: "9a565a15c7200e84411c0029f0b5b7e7395fcc3f3cd976d907fc53aa1b393514",
        kernels: &[
            "rms_norm_1",
            "rms_norm_2",
            "rms_norm_4",
            "rms_norm_8",
        ],
        image: include_bytes!("../../cuda/fatbin/rms_norm.fatbin"),
    },
    Fatbin {
        source: "sample",
        hash: "9f6aeac3a3a33ff3427e4c5566f85cdbc48d123c905b90b425e4cfb3db0ff159",
        kernels: &[
            "sample",
        ],
        image: include_bytes!("../../cuda/fatbin/sample.fatbin"),
    },
    Fatbin {
        source: "skinny_bf16",
        hash: "71b08a743a9b7e397be9b090928b48547c95d5e6fe21c006394fb2afc9ca2ea2",
        kernels: &[
            "skinny_bf16_16",
            "skinny_bf16_32",
            "skinny_bf16_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_bf16.fatbin"),
    },
    Fatbin {
        source: "skinny_fp8",
        hash: "80a9696a82b9d5a050fc7d9e47739d681be5aba8ed221722793f69ae12892ad3",
        kernels: &[
            "skinny_fp8_16",
            "skinny_fp8_32",
            "skinny_fp8_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_fp8.fatbin"),
    },
    Fatbin {
        source: "skinny_w4",
        hash: "0bb592e2be827e37725d7b4542b345d71a5d0f8272b1046d4f7fd24a92995d45",
        kernels: &[
            "skinny_w4_16",
            "skinny_w4_32",
            "skinny_w4_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_w4.fatbin"),
    },
    Fatbin {
        source: "skinny_w8",
        hash: "758f956d3af2bc02210586f2d58b68d235ece85b3a2cdf58895c09f16de4a09e",
        kernels: &[
            "skinny_w8_16",
            "skinny_w8_32",
            "skinny_w8_8",
            "skinny_w8_grouped_16",
            "skinny_w8_grouped_32",
            "skinny_w8_grouped_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_w8.fatbin"),
    },
    Fatbin {
        source: "wrappers",
        hash: "1c4e787adeef826400bc90429295db36be0431450316bddffd14fa6c409fc062",
        kernels: &[
            "wrap_convert",
            "wrap_memory",
            "wrap_mma_bf16",
            "wrap_mma_bf16_t",
            "wrap_mma_f16",
            "wrap_mma_s8",
        ],
        image: include_bytes!("../../cuda/fatbin/wrappers.fatbin"),
    },
    Fatbin {
        source: "wrappers_sm90",
        hash: "d6af1a293c64bb7e6a370449d2236160ffe36e4d575d794079970871a56f7919",
        kernels: &[
            "wrap_copies",
            "wrap_e4m3",
            "wrap_wgmma_128",
            "wrap_wgmma_16",
            "wrap_wgmma_192",
            "wrap_wgmma_256",
            "wrap_wgmma_32",
            "wrap_wgmma_64",
            "wrap_wgmma_8",
            "wrap_wgmma_80",
            "wrap_wgmma_96",
        ],
        image: include_bytes!("../../cuda/fatbin/wrappers_sm90.fatbin"),
    },
];
