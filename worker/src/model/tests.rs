//! A description says what its file says; what no kernel computes is refused by name.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use volley_kernels::RopePairing;

use super::{
    rope::{Scaling, frequencies},
    *,
};
use crate::{format::safetensors, testing};

fn of_gguf(writer: testing::GgufWriter) -> Result<Description, Error> {
    gguf::describe(&Gguf::parse(Path::new("m.gguf"), &Bytes::from(writer.bytes()))?)
}

fn of_hf(changes: Value) -> Result<Description, Error> {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let weights = safetensors::open(Path::new("m"), &[]).unwrap();
    hf::describe(&Directory { path: "m".into(), config, shards: vec![], weights })
}

#[test]
fn smollm2_is_described_as_its_file_says() {
    let Some(path) = testing::reference_model() else { return };
    let model = Model::open(&path).unwrap();
    let Description { layers, width, hidden, heads, vocab, context, .. } = model.description;
    assert_eq!((layers, width, hidden, vocab, context), (30, 576, 1536, 49152, 8192));
    assert_eq!((heads.heads, heads.kv_heads, heads.dim, heads.scale), (9, 3, 64, 0.125));
    assert!(model.description.tied && model.weight_format() == DType::Q4_1);
    assert_eq!(model.description.rope.frequencies, frequencies(64, 100_000.0, &Scaling::None));
}

#[test]
fn families_differ_as_their_files_do() {
    let llama = of_gguf(testing::tiny_gguf()).unwrap();
    assert_eq!((llama.rope.pairing, llama.qkv_bias), (RopePairing::Adjacent, Bias::IfPresent));
    let mut qwen2 = testing::tiny_gguf().str("general.architecture", "qwen2");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 2),
    ] {
        qwen2 = qwen2.u32(&format!("qwen2.{key}"), value);
    }
    let qwen2 = of_gguf(qwen2.f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)).unwrap();
    assert_eq!((qwen2.rope.pairing, qwen2.qkv_bias), (RopePairing::Halves, Bias::Always));

    let hf = |name: &str| of_hf(json!({ "architectures": [name] })).unwrap();
    for (name, qkv_bias) in [
        ("LlamaForCausalLM", Bias::Never),
        ("MistralForCausalLM", Bias::Never),
        ("Qwen2ForCausalLM", Bias::Always),
    ] {
        let description = hf(name);
        assert_eq!(
            (description.rope.pairing, description.qkv_bias),
            (RopePairing::Halves, qkv_bias),
            "{name}"
        );
    }
    assert_eq!(of_hf(json!({ "attention_bias": true })).unwrap().output_bias, Bias::Always);

    let qwen3 = json!({ "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "attention_bias": true });
    let qwen3 = of_hf(qwen3).unwrap();
    assert_eq!((qwen3.heads.dim, qwen3.names.head_norms.is_some()), (128, true));
    assert_eq!(
        (qwen3.qkv_bias, qwen3.output_bias, qwen3.mlp_bias),
        (Bias::Always, Bias::Always, Bias::Never)
    );
    let phi = of_hf(json!({ "architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75 })).unwrap();
    assert_eq!(phi.rope.frequencies, frequencies(12, 10_000.0, &Scaling::None));
}

/// As Google's first files said it, before there were lists of layers and of rotations.
#[test]
fn gemma_s_layers_are_known_where_the_file_does_not_list_them() {
    let gemma = |name: &str, layers: u64| {
        of_hf(json!({
            "architectures": [name], "num_hidden_layers": layers, "hidden_act": "gelu", "query_pre_attn_scalar": 144,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512, "rope_theta": 1e6,
            "rope_scaling": { "rope_type": "linear", "factor": 8.0 }, "rope_local_base_freq": 5000,
        }))
        .unwrap()
    };
    let full = |model: &Description| {
        (0..model.layers).filter(|&layer| model.heads_of(layer).window.is_none()).collect::<Vec<_>>()
    };
    let (gemma2, gemma3) = (gemma("Gemma2ForCausalLM", 4), gemma("Gemma3ForCausalLM", 13));
    assert_eq!((full(&gemma2), full(&gemma3)), (vec![1, 3], vec![5, 11]));
    assert_eq!((gemma3.heads.scale, gemma3.activation), (1.0 / 12.0, Activation::GeluTanh));
    assert_eq!((gemma3.gain_offset, gemma3.embedding_scale, gemma3.softcap), (1.0, 8.0, None));
    let (local, whole) = (gemma3.local.unwrap(), frequencies(16, 1e6, &Scaling::Linear { factor: 8.0 }));
    assert_eq!(local.rope.frequencies, frequencies(16, 5000.0, &Scaling::None));
    assert_eq!(gemma3.rope.frequencies, whole);
    assert_eq!(gemma2.local.unwrap().rope.frequencies, whole, "Gemma 2 has one rotation");
}

/// As the file of Gemma 3's 4B says it.
#[test]
fn of_a_model_that_sees_the_part_that_reads_is_described() {
    let text = json!({
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
    });
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "image_token_index": 262_144, "text_config": text,
        "vision_config": { "hidden_size": 1152 },
    });
    let weights = safetensors::open(Path::new("m"), &[]).unwrap();
    let mut directory = Directory { path: "m".into(), config, shards: vec![], weights };
    hf::only_text(&mut directory);
    let model = hf::describe(&directory).unwrap();
    assert_eq!((model.width, model.hidden, model.layers, model.vocab), (2560, 10240, 34, 262_208));
    assert_eq!((model.heads.heads, model.heads.kv_heads, model.heads.dim), (8, 4, 256));
    assert_eq!((model.heads.scale, model.context, model.epsilon), (1.0 / 16.0, 131_072, 1e-6));
    assert_eq!(model.rope.frequencies, frequencies(256, 1e6, &Scaling::Linear { factor: 8.0 }));
    let local = model.local.unwrap();
    assert_eq!((local.window, local.layers[4..7].to_vec()), (1024, vec![true, false, true]));
    assert_eq!(local.rope.frequencies, frequencies(256, 10_000.0, &Scaling::None));
}

#[test]
fn a_gemma_gguf_file_leaves_out_what_llama_cpp_knows() {
    let gemma = |architecture: &str, layers: u32| {
        let mut writer = testing::tiny_gguf().str("general.architecture", architecture);
        for (key, value) in [
            ("block_count", layers),
            ("context_length", 8192),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 4),
            ("attention.key_length", 16),
            ("attention.sliding_window", 512),
        ] {
            writer = writer.u32(&format!("{architecture}.{key}"), value);
        }
        of_gguf(writer.f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6))
    };
    let gemma2 = gemma("gemma2", 2).unwrap();
    assert_eq!((gemma2.heads.softcap, gemma2.softcap, gemma2.heads.scale), (Some(50.0), Some(30.0), 0.25));
    assert_eq!(gemma2.local.as_ref().unwrap().layers, [true, false]);
    assert_eq!(gemma("gemma2", 46).unwrap().heads.scale, 8f32.powf(-0.5), "the 27B");
    let gemma3 = gemma("gemma3", 62).unwrap();
    assert_eq!((gemma3.heads.softcap, gemma3.softcap, gemma3.gain_offset), (None, None, 0.0));
    assert_eq!(gemma3.heads.scale, 8f32.powf(-0.5), "the 27B");
    assert_eq!(gemma3.local.unwrap().rope.frequencies, frequencies(16, 10_000.0, &Scaling::None));
    let error = gemma("olmo2", 2).unwrap_err().to_string();
    assert!(error.contains("key olmo2.attention.sliding_window: OLMo 3 is not supported"), "{error}");
}

#[test]
fn gpt_bigcode_s_words_are_understood() {
    let config = json!({
        "architectures": ["GPTBigCodeForCausalLM"], "n_layer": 40, "n_embd": 6144, "n_inner": null, "n_head": 48,
        "n_positions": 8192, "activation_function": "gelu", "layer_norm_epsilon": 1e-5,
        "multi_query": true, "vocab_size": 49152,
    });
    let weights = || safetensors::open(Path::new("m"), &[]).unwrap();
    let describe = |config: Value| {
        hf::describe(&Directory { path: "m".into(), config, shards: vec![], weights: weights() })
    };
    let model = describe(config.clone()).unwrap();
    assert_eq!((model.layers, model.width, model.hidden, model.context), (40, 6144, 24576, 8192));
    assert_eq!((model.heads.heads, model.heads.kv_heads, model.heads.dim), (48, 1, 128));
    assert_eq!((model.norm, model.activation, model.tied), (NormKind::Layer, Activation::GeluErf, true));
    assert_eq!((model.positions, model.rope.frequencies.len()), (Some(8192), 0));
    assert_eq!(
        (model.qkv_bias, model.output_bias, model.mlp_bias),
        (Bias::Always, Bias::Always, Bias::Always)
    );
    for (key, value) in [("n_inner", json!(1024)), ("multi_query", json!(false)), ("n_layer", json!("x"))] {
        let mut config = config.clone();
        config[key] = value;
        match describe(config) {
            Ok(model) => assert_eq!(model.hidden, 1024),
            Err(error) => {
                assert!(matches!(error, Error::Unsupported { .. } | Error::Malformed { .. }), "{error}")
            }
        }
    }
}

#[test]
fn starcoder2_may_have_no_biases() {
    let starcoder2 = |use_bias: Value| {
        let config = json!({ "architectures": ["Starcoder2ForCausalLM"], "use_bias": use_bias });
        let model = of_hf(config).unwrap();
        (model.norm, model.activation, model.qkv_bias, model.output_bias, model.mlp_bias)
    };
    let with = |bias| (NormKind::Layer, Activation::GeluTanh, bias, bias, bias);
    assert_eq!(starcoder2(json!(null)), with(Bias::Always));
    assert_eq!(starcoder2(json!(true)), with(Bias::Always));
    assert_eq!(starcoder2(json!(false)), with(Bias::Never));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (
            json!({ "architectures": ["MambaForCausalLM"] }),
            "MambaForCausalLM is not supported; supported: Llama",
        ),
        (json!({ "architectures": [] }), "key architectures: expected a list with one name"),
        (json!({ "mlp_bias": true }), "key mlp_bias: true; only false"),
        (json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention: true; only false"),
        (json!({ "layer_types": ["full_attention"] }), "key layer_types: 1 entries for 2 layers"),
        (
            json!({ "layer_types": ["full_attention", "chunked_attention"] }),
            "key layer_types: expected sliding_attention and full_attention only",
        ),
        (json!({ "sliding_window_pattern": 0 }), "key sliding_window_pattern: 0; expected 1 or more"),
        (
            json!({ "attn_logit_softcapping": 0.0 }),
            "key attn_logit_softcapping: 0; expected a number above 0",
        ),
        (
            json!({ "final_logit_softcapping": -1.0 }),
            "key final_logit_softcapping: -1; expected a number above 0",
        ),
        (json!({ "query_pre_attn_scalar": 0 }), "key query_pre_attn_scalar: 0; expected a number above 0"),
        (json!({ "hidden_act": "relu" }), "key hidden_act: relu; supported: silu"),
        (json!({ "multi_query": false }), "key multi_query: false; only true is supported"),
        (json!({ "scale_attn_weights": false }), "key scale_attn_weights: false; only true is supported"),
        (
            json!({ "partial_rotary_factor": 0.2 }),
            "key partial_rotary_factor: 0.2; expected an even number of the 16",
        ),
        (
            json!({ "rope_scaling": { "type": "dynamic", "factor": 4.0 } }),
            "rope scaling: dynamic; supported: default, linear, llama3, yarn, longrope",
        ),
        (
            json!({ "rope_scaling": { "type": "longrope" } }),
            "rope scaling: original_max_position_embeddings: expected a number above 0",
        ),
        (
            json!({
                "rope_scaling": { "type": "su", "short_factor": [1.0], "long_factor": [2.0, 2.0] },
                "original_max_position_embeddings": 1024,
            }),
            "rope scaling: 2 factors for 8 pairs",
        ),
        (
            json!({ "rope_scaling": { "type": "yarn", "factor": 1e300 } }),
            "context length: 4096000000; expected 1 to",
        ),
        (
            json!({ "rope_scaling": { "rope_type": "linear" } }),
            "rope scaling: factor: expected a number above 0",
        ),
        (
            json!({ "rope_scaling": { "rope_type": "linear", "factor": 0.0 } }),
            "factor: expected a number above 0",
        ),
        (json!({ "hidden_size": -1 }), "configuration: invalid value"),
        (
            json!({ "num_key_value_heads": 3 }),
            "key/value heads: 3; expected a divisor of the 4 attention heads",
        ),
        (json!({ "head_dim": 7 }), "head dimension: 7; expected an even one"),
        (json!({ "vocab_size": 0 }), "vocabulary: 0; expected 1 to"),
    ];
    for (changes, expected) in cases {
        let error = of_hf(changes).unwrap_err().to_string();
        assert!(error.starts_with("m/config.json: ") && error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn layers_have_the_windows_that_their_file_says() {
    let of = |mut changes: Value| {
        changes["sliding_window"] = changes.get("sliding_window").cloned().unwrap_or(json!(1024));
        let model = of_hf(changes).unwrap();
        [0, 1].map(|layer| model.heads_of(layer).window)
    };
    let (all, none, second) = ([Some(1024); 2], [None; 2], [None, Some(1024)]);
    assert_eq!(of(json!({})), all);
    assert_eq!(of(json!({ "sliding_window": null })), none);
    assert_eq!(of(json!({ "sliding_window": 4096 })), none, "no token can tell");
    assert_eq!(of(json!({ "use_sliding_window": false })), none);
    assert_eq!(of(json!({ "layer_types": ["sliding_attention", "sliding_attention"] })), all);
    assert_eq!(of(json!({ "layer_types": ["full_attention", "full_attention"] })), none);
    assert_eq!(of(json!({ "layer_types": ["full_attention", "sliding_attention"] })), second);
    assert_eq!(of(json!({ "use_sliding_window": true, "max_window_layers": 2 })), none);
    assert_eq!(of(json!({ "use_sliding_window": true, "max_window_layers": 1 })), second);
    assert_eq!(of(json!({ "sliding_window_pattern": 1 })), none);
    let gguf = of_gguf(testing::tiny_gguf().u32("llama.attention.sliding_window", 16)).unwrap();
    assert_eq!((gguf.heads.window, gguf.context), (Some(16), 64));
}

#[test]
fn rope_is_scaled_as_its_type_says() {
    let rope = |changes| of_hf(changes).unwrap().rope.frequencies;
    let plain = rope(json!({}));
    assert_eq!(plain.len(), 8);
    assert_eq!((plain[0], plain[4]), (1.0, 0.01)); // 10000^(-8/16)
    let linear = rope(json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }));
    assert_eq!(linear[0], 0.25);
    // From transformers 5 the base stands with the scaling.
    assert_eq!(
        rope(json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 256.0 } }))[4],
        0.0625
    );

    // A long wavelength is divided by the factor, a short one is kept. (Between: tiny-llama's logits.)
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    });
    let llama3 = rope(json!({ "rope_scaling": llama3 }));
    assert_eq!((llama3[0], llama3[7]), (plain[0], plain[7] / 8.0));
}

/// What transformers 5.23 makes of the same parameters.
#[test]
fn yarn_is_that_of_transformers() {
    let of = |mut scaling: Value| {
        scaling.as_object_mut().unwrap().extend(
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256 })
                .as_object()
                .unwrap()
                .clone(),
        );
        of_hf(json!({ "rope_scaling": scaling, "max_position_embeddings": 512 })).unwrap()
    };
    let agree = |rope: &Rope, expected: [f32; 8], magnitude: f32| {
        let off = rope.frequencies.iter().zip(expected).all(|(got, of)| (got - of).abs() <= 1e-6 * of);
        assert!(off && (rope.magnitude - magnitude).abs() < 1e-6, "{rope:?}");
    };
    let usual = [1.0, 0.256_935, 0.0625, 0.013_834_965, 0.0025, 0.000_790_569_5, 0.000_25, 7.905_694e-5];
    let model = of(json!({}));
    agree(&model.rope, usual, 1.138_629_4);
    assert_eq!(model.context, 1024, "as far as it was stretched");
    let asked = json!({ "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5, "truncate": false });
    let other =
        [1.0, 0.291_525_63, 0.050_664_395, 0.007_905_694, 0.0025, 0.000_790_569_5, 0.000_25, 7.905_694e-5];
    agree(&of(asked).rope, other, 1.5);

    let writer = testing::tiny_gguf()
        .str("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 4.0)
        .u32("llama.rope.scaling.original_context_length", 256);
    let gguf = of_gguf(writer.clone()).unwrap();
    agree(&gguf.rope, usual, 1.138_629_4);
    assert_eq!(gguf.context, 1024);
    let error = of_gguf(writer.f32("llama.rope.scaling.yarn_ext_factor", 0.5)).unwrap_err().to_string();
    assert!(error.contains("yarn_ext_factor: only YaRN's usual one"), "{error}");
}

#[test]
fn the_context_chooses_among_longrope_s_factors() {
    let rope = |context: u64, more: Value| {
        let scaling =
            json!({ "type": "longrope", "short_factor": vec![2.0; 8], "long_factor": vec![4.0; 8] });
        let mut config = json!({
            "rope_scaling": scaling, "max_position_embeddings": context, "original_max_position_embeddings": 1024,
        });
        config["rope_scaling"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rope = of_hf(config).unwrap().rope;
        (rope.frequencies[0], rope.magnitude)
    };
    assert_eq!(rope(1024, json!({})), (0.5, 1.0));
    assert_eq!(rope(4096, json!({})), (0.25, (1.0 + 4f64.ln() / 1024f64.ln()).sqrt() as f32));
    assert_eq!(rope(4096, json!({ "attention_factor": 1.25 })), (0.25, 1.25));
    let factors = |factor: f32| (0..8).flat_map(|_| factor.to_le_bytes()).collect::<Vec<u8>>();
    let gguf = |original: u32| {
        let writer = testing::tiny_gguf()
            .u32("llama.rope.scaling.original_context_length", original)
            .f32("llama.rope.scaling.attn_factor", 1.5)
            .tensor("rope_factors_short.weight", &[8], 0, factors(2.0))
            .tensor("rope_factors_long.weight", &[8], 0, factors(4.0));
        let rope = of_gguf(writer).unwrap().rope;
        (rope.frequencies[0], rope.magnitude)
    };
    assert_eq!((gguf(64), gguf(32)), ((0.5, 1.5), (0.25, 1.5)));
}

#[test]
fn a_gguf_file_may_carry_divisors_of_its_frequencies() {
    let factors: Vec<u8> = (0..8).flat_map(|i| (1.0 + i as f32).to_le_bytes()).collect();
    let frequencies = |writer| of_gguf(writer).unwrap().rope.frequencies;
    let (plain, divided) = (
        frequencies(testing::tiny_gguf()),
        frequencies(testing::tiny_gguf().tensor("rope_freqs.weight", &[8], 0, factors)),
    );
    assert_eq!(divided[3], plain[3] / 4.0);
    let linear =
        testing::tiny_gguf().str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.0);
    assert_eq!(frequencies(linear)[0], 0.5);
    let error = of_gguf(testing::tiny_gguf().tensor("rope_freqs.weight", &[8], 0, vec![0; 32])).unwrap_err();
    assert!(error.to_string().contains("give no finite frequencies"), "{error}");
}

/// Each value of a configuration is once missing, and once of each wrong kind.
#[test]
fn a_damaged_configuration_of_any_family_is_read_or_refused() {
    for name in testing::FIXTURES {
        let directory = || Directory::open(&testing::folder(name)).unwrap();
        let keys: Vec<String> = directory().config.as_object().unwrap().keys().cloned().collect();
        let wrong =
            [json!(null), json!(-1), json!(0), json!(3), json!(1e300), json!("x"), json!([]), json!({})];
        for (key, value) in keys.iter().flat_map(|key| wrong.iter().map(move |value| (key, value))) {
            let mut directory = directory();
            directory.config[key] = value.clone();
            hf::only_text(&mut directory);
            if let Err(error) = hf::describe(&directory) {
                let placed = matches!(error, Error::Malformed { .. } | Error::Unsupported { .. });
                assert!(placed, "{name}, {key} = {value}: {error}");
            }
        }
    }
}
