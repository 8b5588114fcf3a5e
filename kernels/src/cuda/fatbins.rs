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
        hash: "182f76e3c486805020ee64e44516cd2fb594a940169c03999671b90c2ba613ca",
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
        hash: "7ea3121b0d1400547120e876a1d13a0a908396a8c274cc4572b182b60f191aa3",
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
        hash: "9a3a2e1862e62aa6663a6bf67edcd62fe0519a49c490adeb4c0d8a72297fab99",
        kernels: &[
            "attention_merge",
        ],
        image: include_bytes!("../../cuda/fatbin/attention_merge.fatbin"),
    },
    Fatbin {
        source: "attention_sm90",
        hash: "8dca7581d78be015f9fe261cf1437a10a9048a8b01cd2d4e6499aa00472dc818",
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
        hash: "c6804b1eb8a31ee2b0a9eccba64add46910cd81a6c9fbfb921ef5c4d4f3b8c95",
        kernels: &[
            "copy_blocks",
        ],
        image: include_bytes!("../../cuda/fatbin/copy_blocks.fatbin"),
    },
    Fatbin {
        source: "dequantize",
        hash: "e4b208e8f67c4243eebbf602b46828ecc507ca6900b36ee6b4bed77fdca0ce58",
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
        hash: "b01fa736bf4249c5b2ea1cf97f880087c5914de3742c55c87f2eca43f972dafa",
        kernels: &[
            "embed",
        ],
        image: include_bytes!("../../cuda/fatbin/embed.fatbin"),
    },
    Fatbin {
        source: "gemm_bf16",
        hash: "833721794b3286ed8f83d589e08f81091a15b8bc5cc2c4e4f6e015f4cf10600c",
        kernels: &[
            "gemm_bf16_128x128",
            "gemm_bf16_16x32",
            "gemm_bf16_64x64",
        ],
        image: include_bytes!("../../cuda/fatbin/gemm_bf16.fatbin"),
    },
    Fatbin {
        source: "gemm_packed_sm90",
        hash: "8774dd8ab6406b935d566cbcdca79dd6ff5d59cc8298f47d7f3ee19d66563a20",
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
        hash: "1d239343828394075161acd140e1e6555c7d6e3cb6e70ea99dff16ec57c703f9",
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
        hash: "0bf6931b41e30b420f4895f03255eafa7c8b852653c64a4ef4746c8154d3a223",
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
        hash: "b3c7378f02f3ee6314a060d3fefb452c6f0850c27a0d9c33e2920876e5b6aeee",
        kernels: &[
            "logits_edit",
            "logits_restore",
        ],
        image: include_bytes!("../../cuda/fatbin/logits.fatbin"),
    },
    Fatbin {
        source: "logprobs",
        hash: "5fc125996e061178457309e234948d88807d2f9084262194d2c9bb4af7583c82",
        kernels: &[
            "logprobs",
        ],
        image: include_bytes!("../../cuda/fatbin/logprobs.fatbin"),
    },
    Fatbin {
        source: "qkv",
        hash: "d1757f77c6d9d26b288812cb2a08dda57f9294b3dfa88fa6e939ebaa334d7a37",
        kernels: &[
            "qkv_store_bf16",
            "qkv_store_e4m3",
        ],
        image: include_bytes!("../../cuda/fatbin/qkv.fatbin"),
    },
    Fatbin {
        source: "rms_norm",
        hash: "ce970b5cff6bfec310b0e36f15afa56c66e398d452c9d8c71e05a33728cc449a",
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
        hash: "a1c8eda85895304723ae8391429d363d9d282b84cf806daa104b411bcd72fcac",
        kernels: &[
            "sample",
        ],
        image: include_bytes!("../../cuda/fatbin/sample.fatbin"),
    },
    Fatbin {
        source: "skinny_bf16",
        hash: "8068d60a44161ea6c01f2f03a8759b8c1c1fb98867705260caefce95a3325db6",
        kernels: &[
            "skinny_bf16_16",
            "skinny_bf16_32",
            "skinny_bf16_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_bf16.fatbin"),
    },
    Fatbin {
        source: "skinny_fp8",
        hash: "e679c15424cbfb39395d7edf6ea3003dcafd82d000329786a5ab07b2b65d7220",
        kernels: &[
            "skinny_fp8_16",
            "skinny_fp8_32",
            "skinny_fp8_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_fp8.fatbin"),
    },
    Fatbin {
        source: "skinny_w4",
        hash: "82d5f317d1b1967d7421e1c87c07aff4adaa86cf9f011709ebce5f749e146caa",
        kernels: &[
            "skinny_w4_16",
            "skinny_w4_32",
            "skinny_w4_8",
        ],
        image: include_bytes!("../../cuda/fatbin/skinny_w4.fatbin"),
    },
    Fatbin {
        source: "skinny_w8",
        hash: "99917b18f659a503eead8049e29225d047d68148edcb89ad7b6f688d2018347e",
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
        hash: "7794ac7999711afceb36a91439c42dabc2707955ecbd8e704047ed1b3be28c4e",
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
        hash: "b380457212648fbad25ddd97a8c7a01e3ff40a1a2bbe35bcbe64a2a7e239e67a",
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
