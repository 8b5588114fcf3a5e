//! What stands between a QKV projection and attention: bias, head norms, rotary positions, the KV write.

use half::bf16;

use super::{int, require, require_aligned, require_len};
use crate::{
    Error, RopePairing,
    cuda::{Argument, Device, Launch, View, ViewMut},
};

const OPERATION: &str = "qkv_store";

/// Prepares the queries of `rows` tokens and stores their keys and values.
pub struct QkvStore<'a> {
    /// Rows of queries, keys and values, and where queries go.
    pub qkv: Queries<'a>,
    /// One such row.
    pub bias: Option<View<'a, bf16>>,
    /// RMS norms of each query and key head.
    pub norms: Option<HeadNorms<'a>>,
    /// Where keys and values go.
    pub cache: KvCache<'a>,
    /// `[rows]`: page · page_tokens + place in the page. A row whose slot isn't in the cache stores nothing.
    pub slots: View<'a, i64>,
    /// `[rows]`
    pub positions: View<'a, u32>,
    /// Radians per position of each rotated pair; empty: no rotation.
    pub frequencies: View<'a, f32>,
    /// Which dimensions turn together.
    pub pairing: RopePairing,
    /// Multiplies what turns.
    pub magnitude: f32,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions of a head: a multiple of 8, at most 256.
    pub dim: usize,
}

/// Rows `[rows, (heads + 2 · kv_heads) · dim]`.
pub enum Queries<'a> {
    /// The prepared queries stand where they stood.
    InPlace(ViewMut<'a, bf16>),
    /// They go elsewhere.
    Apart {
        /// The rows.
        qkv: View<'a, bf16>,
        /// `[rows, heads · dim]`
        q: ViewMut<'a, bf16>,
    },
}

/// Gains `[dim]` of the query and key heads' RMS norms.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Of queries.
    pub q: View<'a, bf16>,
    /// Of keys.
    pub k: View<'a, bf16>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// One layer's pages: keys and values `[pages, kv_heads, page_tokens, dim]` each.
pub struct KvCache<'a> {
    /// The numbers.
    pub numbers: KvNumbers<'a>,
    /// Pages.
    pub pages: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
}

/// How cached numbers are stored.
pub enum KvNumbers<'a> {
    /// As they are.
    Bf16 {
        /// Keys.
        k: ViewMut<'a, bf16>,
        /// Values.
        v: ViewMut<'a, bf16>,
    },
    /// As e4m3 after division by a scale; beyond ±448 they saturate.
    E4m3 {
        /// Keys.
        k: ViewMut<'a, u8>,
        /// Values.
        v: ViewMut<'a, u8>,
        /// Of keys.
        k_scale: f32,
        /// Of values.
        v_scale: f32,
    },
}

/// Launches it.
pub fn qkv_store(device: &dyn Device, op: &QkvStore<'_>) -> Result<(), Error> {
    let (rows, dim, pairs) = (op.slots.len(), op.dim, op.frequencies.len());
    let columns = (op.heads + 2 * op.kv_heads) * dim;
    check(op, columns)?;
    if rows == 0 {
        return Ok(());
    }
    let number = |what, size| int(OPERATION, what, size).map(|size| Argument::from(size as u32));
    let (kernel, k, v, k_scale, v_scale) = match &op.cache.numbers {
        KvNumbers::Bf16 { k, v } => ("qkv_store_bf16", k.into(), v.into(), 1.0, 1.0),
        KvNumbers::E4m3 { k, v, k_scale, v_scale } => {
            ("qkv_store_e4m3", k.into(), v.into(), *k_scale, *v_scale)
        }
    };
    let (qkv, q, q_stride) = match &op.qkv {
        Queries::InPlace(qkv) => (qkv.view(), qkv.into(), columns),
        Queries::Apart { qkv, q } => (*qkv, q.into(), op.heads * dim),
    };
    let launch = Launch {
        kernel,
        grid: [int(OPERATION, "rows", rows)? as u32, 1, 1],
        block: [256, 1, 1],
        shared: 0,
        arguments: &[
            qkv.into(),
            op.bias.into(),
            op.norms.map(|norms| norms.q).into(),
            op.norms.map(|norms| norms.k).into(),
            q,
            k,
            v,
            op.slots.into(),
            op.positions.into(),
            op.frequencies.into(),
            number("heads", op.heads)?,
            number("kv_heads", op.kv_heads)?,
            number("dim", dim)?,
            number("pairs", pairs)?,
            number("page_tokens", op.cache.page_tokens)?,
            number("a row of queries", q_stride)?,
            u32::from(op.pairing == RopePairing::Adjacent).into(),
            number("pages", op.cache.pages)?,
            op.norms.map_or(0.0, |norms| norms.epsilon).into(),
            k_scale.into(),
            v_scale.into(),
            op.magnitude.into(),
        ],
    };
    // SAFETY: the views are as long as the kernel reads and writes, as checked above; it checks the slots itself.
    unsafe { device.launch(&launch) }
}

fn check(op: &QkvStore<'_>, columns: usize) -> Result<(), Error> {
    let (rows, dim, pairs) = (op.slots.len(), op.dim, op.frequencies.len());
    require(OPERATION, dim.is_multiple_of(8) && (8..=256).contains(&dim), || {
        format!("a head has a multiple of 8 dimensions, up to 256, not {dim}")
    })?;
    require(OPERATION, 2 * pairs <= dim, || format!("{pairs} pairs in heads of {dim} dimensions"))?;
    require(OPERATION, op.cache.page_tokens > 0, || "a page holds no token".into())?;
    let (qkv, qkv_at, q) = match &op.qkv {
        Queries::InPlace(qkv) => (qkv.len(), qkv.address(), None),
        Queries::Apart { qkv, q } => (qkv.len(), qkv.address(), Some(q)),
    };
    require_len(OPERATION, "qkv", qkv, rows * columns)?;
    require_len(OPERATION, "bias", op.bias.map_or(columns, |bias| bias.len()), columns)?;
    require_len(OPERATION, "q", q.map_or(rows * op.heads * dim, |q| q.len()), rows * op.heads * dim)?;
    require_len(OPERATION, "positions", op.positions.len(), rows)?;
    if let Some(norms) = op.norms {
        require_len(OPERATION, "the queries' gain", norms.q.len(), dim)?;
        require_len(OPERATION, "the keys' gain", norms.k.len(), dim)?;
    }
    let numbers = op.cache.pages * op.kv_heads * op.cache.page_tokens * dim;
    let ((k, k_at), (v, v_at)) = match &op.cache.numbers {
        KvNumbers::Bf16 { k, v } => ((k.len(), k.address()), (v.len(), v.address())),
        KvNumbers::E4m3 { k, v, .. } => ((k.len(), k.address()), (v.len(), v.address())),
    };
    require_aligned(
        OPERATION,
        &[("qkv", qkv_at), ("q", q.map_or(qkv_at, |q| q.address())), ("k", k_at), ("v", v_at)],
    )?;
    let optional = [op.bias, op.norms.map(|norms| norms.q), op.norms.map(|norms| norms.k)];
    optional
        .into_iter()
        .flatten()
        .try_for_each(|view| require_aligned(OPERATION, &[("bias or gain", view.address())]))?;
    require_len(OPERATION, "the keys' cache", k, numbers)?;
    require_len(OPERATION, "the values' cache", v, numbers)
}
