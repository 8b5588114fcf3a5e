//! Whatever is in a file, the readers answer with a model or with an error that names file and place.

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use volley_kernels::DType;

use super::{directory::Directory, gguf::Gguf, safetensors};
use crate::{Error, model::Model, testing};

/// Bytes of the tensors of `testing::tiny_gguf`, which end the file.
const TINY_DATA: usize = 11_776;

fn gguf(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::parse(Path::new("m.gguf"), &Bytes::from(bytes))
}

/// Everything that opening a GGUF model reads, headers and values.
fn open_gguf(bytes: Vec<u8>) -> Result<Model, Error> {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Model::open(file.path())
}

fn safetensors(header: &str, data: &[u8]) -> Result<(), Error> {
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    safetensors::parse(Path::new("m.safetensors"), &Bytes::from(file)).map(|_| ())
}

fn names_its_place(error: &Error) -> bool {
    matches!(error, Error::Malformed { place, problem, .. } | Error::Unsupported { place, problem, .. }
        if !place.is_empty() && !problem.is_empty())
        || matches!(error, Error::Kernel(volley_kernels::Error::Tensor { .. }))
}

#[test]
fn a_gguf_tensor_is_a_slice_of_the_file() {
    let mut data = vec![0; 2 * 34];
    data[0] = 7;
    let writer = testing::GgufWriter::default().tensor("first", &[1], 0, vec![1, 2, 3, 4]).tensor(
        "second",
        &[32, 2],
        8,
        data.clone(),
    );
    let file = Bytes::from(writer.bytes());
    let gguf = Gguf::parse(Path::new("m.gguf"), &file).unwrap();
    let tensor = gguf.weights.get("second", 2, 32).unwrap();
    assert_eq!((tensor.dtype, &tensor.data[..]), (DType::Q8_0, &data[..]));
    assert!(file.as_ptr_range().contains(&tensor.data.as_ptr()));
}

#[test]
fn gguf_values_are_read_as_they_are_written() {
    let gguf = gguf(
        testing::GgufWriter::default()
            .u32("u", 7)
            .f32("f", 0.5)
            .bool("b", true)
            .str("s", "ä")
            .strings("ss", &["x", ""])
            .i32s("is", &[-1, 2])
            .f32s("fs", &[1.5])
            .bytes(),
    )
    .unwrap();
    assert_eq!(gguf.u64("u").unwrap(), Some(7));
    assert_eq!(gguf.f64("f").unwrap(), Some(0.5));
    assert_eq!(gguf.bool("b").unwrap(), Some(true));
    assert_eq!(gguf.str("s").unwrap(), Some("ä"));
    assert_eq!(gguf.strings("ss").unwrap(), Some(vec!["x", ""]));
    assert_eq!(gguf.integers("is").unwrap(), Some(vec![-1, 2]));
    assert_eq!(gguf.floats("fs").unwrap(), Some(vec![1.5]));
    assert_eq!(gguf.u64("nothing").unwrap(), None);
    let error = gguf.u64("s").unwrap_err().to_string();
    assert_eq!(error, "m.gguf: key s: found a string, expected an integer");
}

#[test]
fn a_damaged_gguf_file_is_told_what_is_wrong() {
    let tiny = testing::tiny_gguf;
    let huge = |at: usize| {
        let mut bytes = tiny().bytes();
        bytes[at..at + 8].fill(0xff);
        bytes
    };
    let mut version = tiny().bytes();
    version[4] = 1;
    let cut = tiny().bytes()[..600].to_vec();
    let cut_data = {
        let bytes = tiny().bytes();
        bytes[..bytes.len() - 1].to_vec()
    };
    let cases = [
        (vec![], "header: the file ends at byte 0"),
        (b"not a model".to_vec(), "header: expected a GGUF file"),
        (version, "header: GGUF version 1; expected 2 or 3"),
        (huge(8), "header: 18446744073709551615 tensors do not fit"),
        (huge(16), "header: 18446744073709551615 metadata pairs do not fit"),
        (huge(24), "metadata pair 0: the file ends"),
        (cut, "strings do not fit in"),
        (cut_data, "tensor blk.0.ffn_norm.weight: 128 bytes at"),
        (tiny().u32("split.count", 2).bytes(), "key split.count: 2 parts; expected one file"),
        (tiny().u32("general.alignment", 3).bytes(), "key general.alignment: 3; expected a power of two"),
        (tiny().tensor("t", &[32], 11, vec![]).bytes(), ""),
        (
            tiny().tensor("t", &[31], 8, vec![]).bytes(),
            "tensor t: sizes [31] are too large, or not whole Q8_0 blocks",
        ),
        (tiny().tensor("t", &[1 << 40, 1 << 40], 0, vec![]).bytes(), "tensor t: sizes"),
        (tiny().tensor("t", &[1; 5], 0, vec![]).bytes(), "tensor t: 5 dimensions; expected 1 to 4"),
        (
            tiny().tensor("output_norm.weight", &[1], 0, vec![0; 4]).bytes(),
            "output_norm.weight: appears twice",
        ),
        (
            tiny().str("general.architecture", "rwkv").bytes(),
            "rwkv is not supported; supported: llama, qwen2",
        ),
        (
            tiny().str("llama.block_count", "1").bytes(),
            "key llama.block_count: found a string, expected an integer",
        ),
        (tiny().u32("llama.block_count", 1 << 30).bytes(), "layers: 1073741824; expected 1 to"),
        (tiny().u32("llama.attention.head_count", 0).bytes(), "attention heads: 0; expected"),
        (tiny().u32("llama.attention.head_count_kv", 3).bytes(), "key/value heads: 3; expected a divisor"),
        (tiny().u32("llama.rope.dimension_count", 99).bytes(), "key llama.rope.dimension_count: 99"),
        (
            tiny().str("llama.rope.scaling.type", "dynamic").bytes(),
            "key llama.rope.scaling.type: dynamic; supported:",
        ),
        (
            tiny().tensor("rope_factors_short.weight", &[8], 0, vec![0; 32]).bytes(),
            "rope: base, factor or rope_freqs give no finite frequencies",
        ),
        (tiny().str("tokenizer.ggml.pre", "tekken").bytes(), "the pre-tokenizer tekken is not supported"),
        (tiny().str("tokenizer.ggml.model", "t5").bytes(), "key tokenizer.ggml.model: t5; supported: gpt2"),
        (
            tiny().strings("tokenizer.ggml.merges", &["a c"]).bytes(),
            "key tokenizer.ggml.merges: \"a c\"; expected",
        ),
        (
            tiny().i32s("tokenizer.ggml.token_type", &[1]).bytes(),
            "token_type: 1 entries; expected one for each of 4",
        ),
        (
            tiny().u32("tokenizer.ggml.eos_token_id", 4).bytes(),
            "eos_token_id: 4; expected one of the 4 tokens",
        ),
    ];
    for (bytes, expected) in cases {
        match open_gguf(bytes) {
            Ok(_) => assert_eq!(expected, ""),
            Err(error) => {
                assert!(
                    error.to_string().contains(expected) && names_its_place(&error),
                    "{expected}: {error}"
                );
            }
        }
    }
    let error = Gguf::open(Path::new("big-00001-of-00002.gguf")).unwrap_err().to_string();
    assert!(error.contains("is one part of a split model"), "{error}");
}

#[test]
fn a_tensor_type_without_kernels_is_an_error_where_the_tensor_is_needed() {
    let gguf = gguf(testing::GgufWriter::default().tensor("t", &[256], 11, vec![]).bytes()).unwrap();
    let error = gguf.weights.get("t", 1, 256).unwrap_err().to_string();
    assert_eq!(
        error,
        "m.gguf: tensor t: stored as type 11 (Q3_K); supported: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K"
    );
}

#[test]
fn a_damaged_safetensors_file_is_told_what_is_wrong() {
    let tensor = |rest: &str| format!("{{\"t\": {{{rest}}}}}");
    let cases = [
        ("", "header: expected a JSON object"),
        ("[]", "header: expected a JSON object"),
        (&tensor(""), "tensor t: expected dtype, shape and data_offsets"),
        (
            &tensor(r#""dtype":"F32","shape":[2],"data_offsets":[0,9]"#),
            "tensor t: data at 0..9, but the file holds 8",
        ),
        (&tensor(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), "tensor t: data at 8..0"),
        (&tensor(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), "tensor t: 1×3 F32 takes 12 bytes"),
        (
            &tensor(r#""dtype":"F32","shape":[9223372036854775807,16],"data_offsets":[0,8]"#),
            "tensor t: 16 columns are not a whole number of F32 blocks",
        ),
    ];
    for (header, expected) in cases {
        let error = safetensors(header, &[0; 8]).unwrap_err();
        assert!(error.to_string().contains(expected) && names_its_place(&error), "{expected}: {error}");
    }
    let short = safetensors::parse(Path::new("m"), &Bytes::from_static(&[0; 7])).unwrap_err().to_string();
    assert_eq!(short, "m: header: the file has 7 bytes, expected 8 for its length");
    let long = safetensors::parse(Path::new("m"), &Bytes::from_static(&[255; 9])).unwrap_err().to_string();
    assert_eq!(long, "m: header: 18446744073709551615 bytes; expected at most 1");
}

#[test]
fn an_index_names_files_of_its_own_directory() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("config.json", "{}");
    let open = || Directory::open(folder.path()).unwrap_err().to_string();
    assert!(open().contains("weights: expected model.safetensors, or model.safetensors.index.json"));
    write("model.safetensors.index.json", r#"{"weight_map": {"t": "../../etc/passwd"}}"#);
    assert!(open().contains("names the shard \"../../etc/passwd\"; expected a file of the same directory"));
    write("model.safetensors.index.json", r#"{"weight_map": {"t": "missing.safetensors"}}"#);
    assert!(open().contains("missing.safetensors: No such file"));
}

#[test]
fn shards_make_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let header = |name: &str| format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    for name in ["a", "b"] {
        let header = header(name);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        std::fs::write(folder.path().join(name), file).unwrap();
    }
    let index = r#"{"metadata": {}, "weight_map": {"a": "a", "b": "b"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let directory = Directory::open(folder.path()).unwrap();
    assert!(directory.weights.get("a", 1, 1).is_ok() && directory.weights.get("b", 1, 1).is_ok());
}

/// A valid safetensors file: one fixture's header and the first bytes of its data.
fn valid_safetensors() -> Vec<u8> {
    std::fs::read(testing::folder("tiny-qwen2").join("model.safetensors")).unwrap()
}

fn parse_safetensors(bytes: Vec<u8>) -> Result<(), Error> {
    safetensors::parse(Path::new("m.safetensors"), &Bytes::from(bytes)).map(|_| ())
}

#[test]
fn a_file_cut_anywhere_in_its_header_is_an_error() {
    let file = testing::tiny_gguf().bytes();
    let header = file.len() - TINY_DATA;
    for end in (0..header).chain([file.len() - 1]) {
        let error = gguf(file[..end].to_vec()).map(|_| end).unwrap_err();
        assert!(names_its_place(&error), "{end}: {error}");
    }
    let file = valid_safetensors();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for end in (0..header + 9).step_by(7).chain([file.len() - 1]) {
        let error = parse_safetensors(file[..end].to_vec()).unwrap_err();
        assert!(names_its_place(&error), "{end}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(names_its_place(&gguf(bytes.clone()).unwrap_err()));
        let mut headed = b"GGUF\x03\0\0\0".to_vec();
        headed.extend(&bytes);
        if let Err(error) = gguf(headed) {
            prop_assert!(names_its_place(&error));
        }
        prop_assert!(names_its_place(&parse_safetensors(bytes).unwrap_err()));
    }

    #[test]
    fn flipped_bytes_are_read_or_refused(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let file = testing::tiny_gguf().bytes();
        let header = file.len() - TINY_DATA;
        let mut flipped = file.clone();
        for (at, value) in &flips {
            flipped[at.index(header)] = *value;
        }
        if let Err(error) = open_gguf(flipped) {
            prop_assert!(names_its_place(&error), "{error}");
        }
        let mut flipped = valid_safetensors();
        let header = u64::from_le_bytes(flipped[..8].try_into().unwrap()) as usize + 8;
        for (at, value) in &flips {
            flipped[at.index(header)] = *value;
        }
        if let Err(error) = parse_safetensors(flipped) {
            prop_assert!(names_its_place(&error), "{error}");
        }
    }

    #[test]
    fn flipped_bytes_of_any_family_are_loaded_or_refused(
        which in any::<prop::sample::Index>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let name = testing::GGUF_FIXTURES[which.index(testing::GGUF_FIXTURES.len())];
        let mut flipped = std::fs::read(testing::folder(name).join("model.gguf")).unwrap();
        let start = flipped.len();
        let bytes = Bytes::from(flipped.clone());
        let whole = Gguf::parse(Path::new("m.gguf"), &bytes).unwrap();
        let first = |tensor: &volley_kernels::Tensor| tensor.data.as_ptr() as usize - bytes.as_ptr() as usize;
        let header = whole.weights.tensors().map(first).fold(start, usize::min);
        for (at, value) in &flips {
            flipped[at.index(header)] = *value;
        }
        if let Err(error) = open_gguf(flipped) {
            prop_assert!(names_its_place(&error), "{error}");
        }
    }
}
