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
        hash: "21ea16df2149f81e56bc0ac8f6c4e6a3d45d4514ff7760dbd99f88bccdd2dee3",
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
        hash: "8185018314c13441af81c9cb7b82451ea16684b471fc386cd5658ea7f7084ba2",
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
        hash: "65319320c532afad8fa8a50c8253fa5ff376cde321fd0dcb8c6e4c458f6358a2",
        kernels: &[
            "attention_merge",
        ],
        image: include_bytes!("../../cuda/fatbin/attention_merge.fatbin"),
    },
    Fatbin {
        source: "attention_sm90",
        hash: "4dfa87a87e2446514e06e9f74ff7158560cb189101070bb4fd52b9e57fd84c52",
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
        hash: "0014065e6beb1e75780ea1a9a324fb5f6b208ba5b8ba7fede1828994833e25dc",
        kernels: &[
            "copy_blocks",
        ],
        image: include_bytes!("../../cuda/fatbin/copy_blocks.fatbin"),
    },
    Fatbin {
        source: "dequantize",
        hash: "68c3661a39053e30018589820ab629bcee78dfe00ba1453d18e8d7e99f24af1e",
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
        hash: "c7477a0cdcfd58e36fd1543199017ff61bb9315305358261cd46286189bb9c39",
        kernels: &[
            "embed",
        ],
        image: include_bytes!("../../cuda/fatbin/embed.fatbin"),
    },
    Fatbin {
        source: "gemm_bf16",
        hash: "3efe4cd654d140000ddb925c69c3977ac1900a8e328a450bef64dde8562a042f",
        kernels: &[
            "gemm_bf16_128x128",
            "gemm_bf16_16x32",
            "gemm_bf16_64x64",
        ],
        image: include_bytes!("../../cuda/fatbin/gemm_bf16.fatbin"),
    },
    Fatbin {
        source: "gemm_packed_sm90",
        hash: "89877066228567e7822d0cdb661bec6d7d5b27c6e17f3061eb18f8d07c584c78",
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
        hash: "b42af2c43332022fd49d8a6a54a21cf057fe16441634302b2bbb20e8e62196f8",
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
        hash: "155400a129cd20a0072e49c9745027c5ccbf49cc06addff28ff79d9efe87dfc5",
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
        hash: "d442bfe65a331f123c9e9f93f83d413b2a0d8a1e2aa16f1c0160b01307f6d168",
        kernels: &[
            "logits_edit",
            "logits_restore",
        ],
        image: include_bytes!("../../cuda/fatbin/logits.fatbin"),
    },
    Fatbin {
        source: "logprobs",
        hash: "43eb7e5fa5295c68365f1576cd2a810cea954c8218c05ffda9ee404e73ab73ba",
        kernels: &[
            "logprobs",
        ],
        image: include_bytes!("../../cuda/fatbin/logprobs.fatbin"),
    },
    Fatbin {
        source: "qkv",
        hash: "0209783b6f4a652f1ca5347cf532df6a7f3f98dbff416c961545a81ccab51d09",
        kernels: &[
            "qkv_store_bf16",
            "qkv_store_e4m3",
        ],
        image: include_bytes!("../../cuda/fatbin/qkv.fatbin"),
    },
    Fatbin {
        source: "rms_norm",
        hash: "66b00023875daf2d05f7315ae2011da610011accf3c20c99ad25ba7d749b28dd",
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
        hash: "9ad146a604cd48035830fc24e8b924f73b2616a172224c89ce058c7d3104aa72",
        kernels: &[
            "sample",
        ],
        image: include_bytes!("../../cuda/fatbin/sample.fatbin"),
    },
    Fatbin {
        source: "skinny_bf16",
        hash: "f422696397290f56dbcf617a590a331b63636cd9537e7d7cbc97d09d6a1d2cfd",
        kernels: &[
            "skinny_bf16_16",
            "skinny_bf16_32",
            "skinny_bf16_64",
            "skinny_bf16_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_bf16.fatbin"),
    },
    Fatbin {
        source: "skinny_fp8",
        hash: "436026f3502c13de2818cd6dddb558e061076f45663b1f1727ddd4be41fb5e6f",
        kernels: &[
            "skinny_fp8_16",
            "skinny_fp8_32",
            "skinny_fp8_64",
            "skinny_fp8_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_fp8.fatbin"),
    },
    Fatbin {
        source: "skinny_w4",
        hash: "d498e7cb10ecf73a8b615508b8e437539b83cc5caa44ffa33a2867f98e966af1",
        kernels: &[
            "skinny_w4_16",
            "skinny_w4_32",
            "skinny_w4_64",
            "skinny_w4_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_w4.fatbin"),
    },
    Fatbin {
        source: "skinny_w8",
        hash: "fc1455878392f1c3e62cbdb5224770c6d9377c091b0474b13da1af62b769267d",
        kernels: &[
            "skinny_w8_16",
            "skinny_w8_32",
            "skinny_w8_64",
            "skinny_w8_8",
            "skinny_w8_grouped_16",
            "skinny_w8_grouped_32",
            "skinny_w8_grouped_64",
            "skinny_w8_grouped_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_w8.fatbin"),
    },
    Fatbin {
        source: "wrappers",
        hash: "8b80815ea63549b9e7b9a330629d0e2d06965e5e3e299587bc2fbaaf89c6a618",
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
        hash: "6f505b50d50d26768eae126e4f0466a38848273ac4b81007b7b35d671d975ec9",
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
