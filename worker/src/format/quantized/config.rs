//! What `quantization_config` says.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::Value;
use volley_kernels::DType;

use super::{Kind, Scheme};
use crate::Error;

const SUPPORTED: &str = "supported: fp8 (e4m3), compressed-tensors (fp8, int8, int4), gptq (4 and 8 bits), awq (4 bits), modelopt (FP8)";

/// The parts of all methods.
#[derive(Deserialize)]
struct Settings {
    quant_method: Option<String>,
    /// Of fp8.
    fmt: Option<String>,
    weight_block_size: Option<[usize; 2]>,
    /// Of compressed-tensors; of GPTQ and AWQ lately what `checkpoint_format` and `version` were.
    format: Option<String>,
    config_groups: Option<BTreeMap<String, Group>>,
    quantization_status: Option<String>,
    sparsity_config: Option<Sparsity>,
    transform_config: Option<Transforms>,
    /// Of GPTQ and AWQ.
    bits: Option<u64>,
    checkpoint_format: Option<String>,
    version: Option<String>,
    zero_point: Option<bool>,
    /// Of modelopt.
    quant_algo: Option<String>,
}

#[derive(Deserialize)]
struct Group {
    weights: Option<Codes>,
    format: Option<String>,
}

#[derive(Deserialize)]
struct Codes {
    num_bits: u64,
    #[serde(rename = "type")]
    kind: Option<String>,
    strategy: Option<String>,
    block_structure: Option<[usize; 2]>,
}

#[derive(Deserialize)]
struct Sparsity {
    format: Option<String>,
}

#[derive(Deserialize)]
struct Transforms {
    config_groups: Option<BTreeMap<String, Value>>,
}

/// How the layers of a model with this configuration are stored; none if they aren't quantized.
pub(in crate::format) fn scheme(config: &Value, file: &Path) -> Result<Option<Scheme>, Error> {
    let settings = ["quantization_config", "compression_config"].into_iter().find_map(|key| config.get(key));
    let Some(settings) = settings.filter(|settings| !settings.is_null()) else { return Ok(None) };
    let place = "key quantization_config";
    let settings = Settings::deserialize(settings)
        .map_err(|e| Error::malformed(file, place, crate::error::plainly(&e)))?;
    settings.scheme().map(Some).map_err(|problem| Error::unsupported(file, place, problem))
}

// === impl Settings ===

impl Settings {
    fn scheme(&self) -> Result<Scheme, String> {
        match self.quant_method.as_deref() {
            Some("fp8") => self.fp8(),
            Some("compressed-tensors") => self.compressed(),
            Some("gptq") => {
                let (codes, format) = match self.bits.unwrap_or(4) {
                    4 => (8, DType::Int4),
                    8 => (4, DType::Int8),
                    bits => return Err(format!("gptq of {bits} bits; supported: 4, 8")),
                };
                let zero = match self.checkpoint_format.as_deref().or(self.format.as_deref()) {
                    None | Some("gptq") => 1,
                    Some("gptq_v2") => 0,
                    Some(other) => return Err(format!("gptq stored as {other}; supported: gptq, gptq_v2")),
                };
                Ok(Scheme { kind: Kind::Gptq { codes, zero }, format })
            }
            Some("awq") => {
                if let Some(bits) = self.bits.filter(|bits| *bits != 4) {
                    return Err(format!("awq of {bits} bits; supported: 4"));
                }
                let version = self.version.as_deref().or(self.format.as_deref()).unwrap_or("gemm");
                if !version.eq_ignore_ascii_case("gemm") {
                    return Err(format!("awq stored for {version}; supported: gemm"));
                }
                if self.zero_point == Some(false) {
                    return Err("awq without zero points; supported: with them".to_owned());
                }
                Ok(Scheme { kind: Kind::Awq, format: DType::Int4 })
            }
            Some("modelopt") => match self.quant_algo.as_deref() {
                Some("FP8") => Ok(Scheme { kind: Kind::Codes { block: None }, format: DType::E4m3 }),
                other => Err(format!("modelopt, {}; supported: FP8", other.unwrap_or("no quant_algo"))),
            },
            Some(other) => Err(format!("quant_method {other}; {SUPPORTED}")),
            None => Err(format!("no quant_method; {SUPPORTED}")),
        }
    }

    fn fp8(&self) -> Result<Scheme, String> {
        if let Some(other) = self.fmt.as_deref().filter(|fmt| *fmt != "e4m3") {
            return Err(format!("fp8 stored as {other}; supported: e4m3"));
        }
        Ok(Scheme { kind: Kind::Codes { block: blocks(self.weight_block_size)? }, format: DType::E4m3 })
    }

    fn compressed(&self) -> Result<Scheme, String> {
        if let Some(status) = self.quantization_status.as_deref().filter(|status| *status != "compressed") {
            return Err(format!("compressed-tensors of status {status}; supported: compressed"));
        }
        let sparse = self.sparsity_config.as_ref().and_then(|sparsity| sparsity.format.as_deref());
        if let Some(format) = sparse.filter(|format| *format != "dense") {
            return Err(format!("compressed-tensors, sparse as {format}; supported: dense"));
        }
        let transforms =
            self.transform_config.as_ref().and_then(|transforms| transforms.config_groups.as_ref());
        if transforms.is_some_and(|groups| !groups.is_empty()) {
            return Err("compressed-tensors with transforms; supported: without".to_owned());
        }
        let groups = self.config_groups.iter().flat_map(BTreeMap::values);
        let (mut block, mut first) = (None, None);
        for group in groups {
            let format = group.format.as_deref().or(self.format.as_deref()).unwrap_or("");
            let Some(codes) = &group.weights else { continue };
            let dtype = codes.dtype(format)?;
            block = block.or(blocks(codes.block_structure)?);
            first = first.or(Some(dtype));
        }
        let format =
            first.ok_or_else(|| format!("compressed-tensors without quantized weights; {SUPPORTED}"))?;
        Ok(Scheme { kind: Kind::Codes { block }, format })
    }
}

// === impl Codes ===

impl Codes {
    fn dtype(&self, format: &str) -> Result<DType, String> {
        let kind = self.kind.as_deref().unwrap_or("int");
        let strategy = self.strategy.as_deref().unwrap_or("tensor");
        let known = matches!(strategy, "tensor" | "channel" | "group" | "block");
        match (format, kind, self.num_bits) {
            ("float-quantized" | "naive-quantized", "float", 8) if known => Ok(DType::E4m3),
            ("int-quantized" | "naive-quantized" | "pack-quantized", "int", 8) if known => Ok(DType::Int8),
            ("pack-quantized", "int", 4) if known => Ok(DType::Int4),
            _ => Err(format!(
                "compressed-tensors, {format}: {kind} of {} bits by {strategy}; supported: float-quantized of 8 bits, \
                 int-quantized of 8, pack-quantized of 4 and 8, by tensor, channel, group or block",
                self.num_bits
            )),
        }
    }
}

fn blocks(size: Option<[usize; 2]>) -> Result<Option<[usize; 2]>, String> {
    match size {
        Some([high, wide]) if high == 0 || wide == 0 => Err(format!("blocks of {high} × {wide}")),
        size => Ok(size),
    }
}
