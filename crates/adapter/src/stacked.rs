//! Updates of a batch whose rows have different adapters, as one product.

use crate::{active::Rows, update::LowRank};
use burn::{
    module::{
        Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    },
    tensor::{DType, Device, Tensor},
};
use burn_lora_kernels::add_row_updates;
use burn_lora_quant::Update;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Low-rank updates of one layer one under the other, in which each row has the ranks of its own
/// adapter and the others are masked: host work does not grow with the number of adapters.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// A's, `[ranks, in]`.
    a: Tensor<2>,
    /// B's, `[out, ranks]`.
    b: Tensor<2>,
    scaling: f32,
    /// 1 where `h = x · Aᵀ` belongs to the row's adapter, 0 elsewhere, `[rows, ranks]`.
    kept: Tensor<2>,
}

impl Stack {
    /// Stacks the updates of adapters, each with its number in the batch; `None` without any.
    pub fn new(updates: &[(usize, LowRank)], rows: &Rows, dtype: DType) -> Option<Self> {
        let (_, first) = updates.first()?;
        let one = updates.iter().all(|(_, update)| update.scaling == first.scaling);
        let parts = |of: fn(&LowRank) -> &Tensor<2>| {
            updates.iter().map(move |(_, update)| of(update).clone())
        };
        let b = parts(|update| &update.b).zip(updates).map(|(b, (_, update))| match one {
            true => b,
            false => b * update.scaling,
        });
        let ranks = updates.iter().map(|(number, update)| (*number, update.a.dims()[0]));
        Some(Self {
            a: Tensor::cat(parts(|update| &update.a).collect(), 0).cast(dtype),
            b: Tensor::cat(b.collect(), 1).cast(dtype),
            scaling: if one { first.scaling as f32 } else { 1.0 },
            kept: rows.kept(&ranks.collect::<Vec<_>>()),
        })
    }

    /// Adds to each row of `y` the update of its adapter for `x`.
    ///
    /// # Shapes
    /// - y, output: `[rows, ..., out]`
    /// - x: `[rows, ..., in]`
    pub fn add_to<const D: usize>(self, y: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
        add_row_updates(y, x, self.a, self.b, self.kept.equal_elem(0.0), self.scaling)
    }

    /// The update of rows that are the whole batch, and what is kept of its h.
    pub fn into_update(self) -> (Update, Tensor<2>) {
        (Update { a: self.a, b: self.b, scale: self.scaling }, self.kept)
    }
}

/// Stack of the batch that a layer ran last, kept for its next step (the next token). A layer that
/// changes, by a mapper or through [`forget`](Self::forget), has none.
#[derive(Debug, Default)]
pub(crate) struct LastStack(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    rows: Weak<Rows>,
    dtype: DType,
    stack: Option<Stack>,
}

impl LastStack {
    /// Returns the stack of these rows if it is known: `Some(None)` if the layer has no update for them.
    pub fn get(&self, rows: &Arc<Rows>, dtype: DType) -> Option<Option<Stack>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&Known| {
            std::ptr::eq(known.rows.as_ptr(), Arc::as_ptr(rows)) && known.dtype == dtype
        };
        known.as_ref().filter(same).map(|known| known.stack.clone())
    }

    /// Keeps the stack of these rows.
    pub fn set(&self, rows: &Arc<Rows>, dtype: DType, stack: Option<Stack>) {
        let known = Known { rows: Arc::downgrade(rows), dtype, stack };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// Forgets the stack: the layer may change.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Clone for LastStack {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// A module without parameters, empty after whatever maps the layer.
impl Module for LastStack {
    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn fork(self, _: &Device) -> Self {
        Self::default()
    }

    fn to_device(self, _: &Device) -> Self {
        Self::default()
    }

    fn train(self) -> Self {
        Self::default()
    }

    fn valid(&self) -> Self {
        Self::default()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _: &mut V) {}

    fn map<M: ModuleMapper>(self, _: &mut M) -> Self {
        Self::default()
    }
}

impl ModuleDisplay for LastStack {}

impl ModuleDisplayDefault for LastStack {
    fn content(&self, _: Content) -> Option<Content> {
        None
    }
}
