//! Attention of a step's new tokens over the paged cache, by a plan.

use std::sync::Arc;

use half::bf16;

use super::{
    attention_plan::{AttentionCapacity, AttentionKernel, AttentionPlan, OPERATION},
    int, require, require_aligned, require_len,
};
use crate::{
    Error,
    cuda::{Address, Argument, Device, ElementType, Launch, Memory, TensorMap, Tile, View, ViewMut},
};

/// The keys and values of one layer: `[page, kv_head, page_tokens, dim]` each.
#[derive(Clone, Copy)]
pub enum KvPages<'a> {
    /// As computed.
    Bf16 {
        /// Keys.
        k: View<'a, bf16>,
        /// Values.
        v: View<'a, bf16>,
    },
    /// 8-bit floats.
    E4m3 {
        /// Keys.
        k: View<'a, u8>,
        /// Values.
        v: View<'a, u8>,
        /// `[2, kv_heads]`: what keys and values are multiplied by.
        scales: View<'a, f32>,
    },
}

/// A plan on the device.
pub struct PlannedAttention {
    plan: AttentionPlan,
    capacity: AttentionCapacity,
    lists: Memory<i32>,
    table: Memory<i32>,
}

/// A plan and where its lists lie on the device.
#[derive(Clone, Copy)]
pub struct PlannedView<'a> {
    plan: &'a AttentionPlan,
    capacity: &'a AttentionCapacity,
    lists: View<'a, i32>,
    table: View<'a, i32>,
}

/// Attention of the tokens of a plan.
pub struct Attention<'a> {
    /// Which tokens, over which pages.
    pub planned: PlannedView<'a>,
    /// Rows of `stride` elements, of which the first `heads × dim` are queries.
    pub q: View<'a, bf16>,
    /// Elements from row to row of `q`: a multiple of 8.
    pub q_stride: usize,
    /// Keys and values; those of the new tokens are in it already.
    pub pages: KvPages<'a>,
    /// At least the [`scratch`](AttentionPlan::scratch) of the capacity's slots.
    pub scratch: ViewMut<'a, f32>,
    /// `[rows, heads × dim]`
    pub out: ViewMut<'a, bf16>,
}

/// Launches it, and the merge of parts where the plan has (or, by its capacity, could have) some.
pub fn attention(device: &dyn Device, op: &Attention<'_>) -> Result<(), Error> {
    op.check()?;
    let PlannedView { plan, capacity, lists, table } = op.planned;
    if capacity.items == 0 {
        return Ok(());
    }
    let shape = &plan.shape;
    let list = |at: usize| Argument::from(lists.slice(at..lists.len()));
    let parts = capacity.slots * plan.part_rows() * shape.kv_heads;
    let (k, v, scales) = op.pages.arguments();
    let sums = Address(op.scratch.address().0 + (parts * shape.dim * size_of::<f32>()) as u64);
    let common = [
        op.q.into(),
        k,
        v,
        table.into(),
        list(0),
        list(capacity.items_at()),
        scales,
        (&op.out).into(),
        (&op.scratch).into(),
        Argument::Address(sums),
        int(OPERATION, "q_stride", op.q_stride)?.into(),
        int(OPERATION, "heads × dim", shape.heads * shape.dim)?.into(),
        int(OPERATION, "group", shape.group())?.into(),
        int(OPERATION, "rows", plan.part_rows())?.into(),
        int(OPERATION, "page_tokens", shape.page_tokens / 16)?.into(),
        int(OPERATION, "window", shape.window.unwrap_or(0))?.into(),
        int(OPERATION, "segment", plan.segment)?.into(),
        shape.scale.into(),
        shape.softcap.unwrap_or(0.0).into(),
    ];
    let hopper = plan.kernel == AttentionKernel::Hopper;
    let mut arguments = Vec::with_capacity(common.len() + 3);
    if hopper {
        let (maps, rows) = op.maps(device)?;
        arguments.extend(maps.map(Argument::from));
        arguments.extend(common);
        arguments[3] = Argument::Address(Address(0));
        arguments[4] = Argument::Address(Address(0));
        arguments.push(int(OPERATION, "box", rows)?.into());
    } else {
        arguments.extend(common);
    }
    let launch = Launch {
        kernel: kernel(plan),
        grid: [capacity.items as u32, shape.kv_heads as u32, 1],
        block: [if hopper { 384 } else { 128 }, 1, 1],
        shared: plan.kernel.shared(shape, capacity.folds),
        arguments: &arguments,
    };
    // SAFETY: a plan's lists name rows, pages and parts within what `check` measured the views against.
    unsafe { device.launch(&launch)? };
    if capacity.merges > 0 { merge(device, op, &common) } else { Ok(()) }
}

fn merge(device: &dyn Device, op: &Attention<'_>, common: &[Argument]) -> Result<(), Error> {
    let PlannedView { plan, capacity, lists, .. } = op.planned;
    let items = lists.slice(capacity.merges_at()..lists.len());
    // part_o, part_ml, scales, out; out_stride, group, part_rows
    let mut arguments = vec![items.into(), common[8], common[9], common[6], common[7]];
    arguments.extend([common[11], common[12], common[13]]);
    arguments.push(int(OPERATION, "dim", plan.shape.dim)?.into());
    let launch = Launch {
        kernel: "attention_merge",
        grid: [capacity.merges as u32, plan.shape.kv_heads as u32, 1],
        block: [128, 1, 1],
        shared: 0,
        arguments: &arguments,
    };
    // SAFETY: as for the attention.
    unsafe { device.launch(&launch) }
}

fn kernel(plan: &AttentionPlan) -> &'static str {
    macro_rules! names {
        ($($dim:literal $large:literal),*) => {
            match (plan.shape.dim, plan.kernel, plan.shape.e4m3) {
                $(($dim, AttentionKernel::Small, false) => concat!("attention_d", $dim, "_bf16_r16"),
                ($dim, AttentionKernel::Small, true) => concat!("attention_d", $dim, "_e4m3_r16"),
                ($dim, AttentionKernel::Large, false) => concat!("attention_d", $dim, "_bf16_r", $large),
                ($dim, AttentionKernel::Large, true) => concat!("attention_d", $dim, "_e4m3_r", $large),
                ($dim, AttentionKernel::Hopper, _) => concat!("attention_sm90_d", $dim),)*
                _ => unreachable!("a plan's shape was checked"),
            }
        };
    }
    names!(64 64, 80 64, 96 64, 128 64, 256 32)
}

// === impl PlannedAttention ===

impl PlannedAttention {
    /// Copies a plan's lists to the device.
    pub fn new(device: &Arc<dyn Device>, plan: AttentionPlan) -> Result<Self, Error> {
        let capacity = plan.capacity();
        Self::with_capacity(device, plan, capacity)
    }

    /// With room for larger ones, to be [`replace`](Self::replace)d under a captured graph.
    pub fn with_capacity(
        device: &Arc<dyn Device>,
        plan: AttentionPlan,
        capacity: AttentionCapacity,
    ) -> Result<Self, Error> {
        let (mut lists, mut table) = (plan.lists(&capacity)?, plan.table().to_vec());
        table.resize(capacity.entries.max(1), 0); // an allocation is not empty
        lists.resize(lists.len().max(1), 0);
        let (lists, table) = (Memory::from_slice(device, &lists)?, Memory::from_slice(device, &table)?);
        Ok(Self { plan, capacity, lists, table })
    }

    /// As a launch takes it.
    pub fn view(&self) -> PlannedView<'_> {
        let Self { plan, capacity, lists, table } = self;
        PlannedView { plan, capacity, lists: lists.view(), table: table.view() }
    }

    /// The plan.
    pub fn plan(&self) -> &AttentionPlan {
        &self.plan
    }

    /// Puts another plan in its place, which a graph captured with this one then runs: one for the same shape and
    /// kernel, within the capacity.
    pub fn replace(&mut self, plan: AttentionPlan) -> Result<(), Error> {
        let (old, new) = (&self.plan, &plan);
        let alike = old.shape == new.shape && old.kernel == new.kernel && old.segment == new.segment;
        require(OPERATION, alike, || "a plan is replaced by one for the same shape and kernel".into())?;
        self.lists.write(&plan.lists(&self.capacity)?)?;
        self.table.write(plan.table())?;
        self.plan = plan;
        Ok(())
    }
}

// === impl PlannedView ===

impl<'a> PlannedView<'a> {
    /// Of what was put there by other means: `lists` and `table` must be the plan's [`lists`](AttentionPlan::lists) for this
    /// capacity and its [`table`](AttentionPlan::table) once the launch runs, which is why only this crate may say so.
    pub(in crate::cuda) fn new(
        plan: &'a AttentionPlan,
        capacity: &'a AttentionCapacity,
        lists: View<'a, i32>,
        table: View<'a, i32>,
    ) -> Self {
        Self { plan, capacity, lists, table }
    }
}

// === impl KvPages ===

impl KvPages<'_> {
    fn arguments(&self) -> (Argument, Argument, Argument) {
        match *self {
            Self::Bf16 { k, v } => (k.into(), v.into(), Argument::Address(Address(0))),
            Self::E4m3 { k, v, scales } => (k.into(), v.into(), scales.into()),
        }
    }

    fn lens(&self) -> (usize, usize) {
        match self {
            Self::Bf16 { k, v } => (k.len(), v.len()),
            Self::E4m3 { k, v, .. } => (k.len(), v.len()),
        }
    }

    fn addresses(&self) -> (Address, Address) {
        match self {
            Self::Bf16 { k, v } => (k.address(), v.address()),
            Self::E4m3 { k, v, .. } => (k.address(), v.address()),
        }
    }
}

// === impl Attention ===

impl Attention<'_> {
    fn check(&self) -> Result<(), Error> {
        let PlannedView { plan, capacity, .. } = self.planned;
        let shape = &plan.shape;
        let columns = shape.heads * shape.dim;
        let strides = self.q_stride >= columns && self.q_stride.is_multiple_of(8);
        require(OPERATION, strides, || {
            format!("q_stride must be a multiple of 8 and at least {columns}, not {}", self.q_stride)
        })?;
        let rows = capacity.rows;
        let queries = if rows == 0 { 0 } else { (rows - 1) * self.q_stride + columns };
        require(OPERATION, self.q.len() >= queries, || {
            format!("q has {} elements, the plan needs {queries}", self.q.len())
        })?;
        require(OPERATION, self.out.len() >= rows * columns, || {
            format!("out has {} elements, the plan needs {}", self.out.len(), rows * columns)
        })?;
        let scratch = plan.scratch(capacity.slots);
        require(OPERATION, self.scratch.len() >= scratch, || {
            format!("scratch has {} elements, the plan needs {scratch}", self.scratch.len())
        })?;
        let (k, v) = self.pages.addresses();
        let (q, out, scratch) = (self.q.address(), self.out.address(), self.scratch.address());
        require_aligned(OPERATION, &[("q", q), ("out", out), ("scratch", scratch), ("k", k), ("v", v)])?;
        let page = shape.kv_heads * shape.page_tokens * shape.dim;
        let (k, v) = self.pages.lens();
        require(OPERATION, k == v && k.is_multiple_of(page), || {
            format!("{k} keys and {v} values are no pages of {page} elements")
        })?;
        require(OPERATION, k / page >= capacity.pages, || {
            format!("the plan reads {} pages, the cache has {}", capacity.pages, k / page)
        })?;
        // The kernels count 16-byte units in 32 bits.
        require(OPERATION, k / 16 <= u32::MAX as usize / 2, || {
            format!("a cache of {k} keys' elements is too large")
        })?;
        match &self.pages {
            KvPages::E4m3 { scales, .. } => {
                require_len(OPERATION, "scales", scales.len(), 2 * shape.kv_heads)?;
            }
            KvPages::Bf16 { .. } => {}
        }
        require(OPERATION, matches!(self.pages, KvPages::E4m3 { .. }) == shape.e4m3, || {
            "the plan is for pages of another type".into()
        })
    }

    /// Of keys and values, in boxes of 64 dimensions × the rows returned.
    fn maps(&self, device: &dyn Device) -> Result<([TensorMap; 2], usize), Error> {
        let KvPages::Bf16 { k, v } = self.pages else {
            return Err(Error::Unsupported("attention with wgmma reads bf16 pages".into()));
        };
        let shape = &self.planned.plan.shape;
        // Within a page, and a tile of keys is whole boxes.
        let rows = (1 << shape.page_tokens.trailing_zeros()).min(64);
        let map = |view: View<'_, bf16>| {
            device.tensor_map(&Tile {
                base: view.address(),
                element: ElementType::Bf16,
                rows: view.len() / shape.dim,
                columns: shape.dim,
                pitch: shape.dim * size_of::<bf16>(),
                box_rows: rows,
                box_columns: 64,
                swizzle: 128,
            })
        };
        Ok(([map(k)?, map(v)?], rows))
    }
}
