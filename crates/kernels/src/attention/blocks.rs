//! Blockwise attention: batched products over some heads and some queries at a time, so that the
//! memory for scores is bounded, whatever the batch size and the number of heads.

use super::{AttentionSpec, check};
use crate::{Gemm, GemmOps};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, Shape, Slice},
};
use std::ops::Range;

/// Queries per block: a multiple of the tile of tensor cores, and few enough that most of the keys
/// after a block's last query are skipped.
const ROWS: usize = 256;

/// Maximal number of scores per block, unless one head has more: 256 MiB in float32. Less would
/// take too many kernels for long rows; more would exceed what the MLP's backward pass needs
/// anyway.
const SCORES: usize = 64 << 20;

/// Maximal number of attention scores in memory at a time, for rows of `length` tokens; for memory
/// estimates.
///
/// ```
/// use burn_lora_kernels::attention_scores;
///
/// // 32 heads over 8: all at once for a short row, and never more than for some rows.
/// assert_eq!(attention_scores(1, 32, 8, 100), 32 * 100 * 100);
/// assert_eq!(attention_scores(64, 32, 8, 2048), attention_scores(16, 32, 8, 2048));
/// ```
pub fn attention_scores(batch: usize, heads: usize, kv_heads: usize, length: usize) -> usize {
    let per_head = heads / kv_heads * ROWS.min(length) * length;
    (batch * kv_heads * per_head).min(SCORES.max(per_head))
}

/// Backend operations of blockwise attention, beside the matrix product.
pub(super) trait BlockOps: GemmOps {
    /// Softmax of each row of a block of scores over its visible keys, in `dtype`, with zeros
    /// elsewhere. Writes the logarithms of the sums into `lse`.
    fn block_softmax(
        scores: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Recomputes the probabilities `p` of a block, and returns them with the gradient of the
    /// products `q · kᵀ`, computed from that of `p`: `scale · p · (p_grad - delta)`; both in
    /// `dtype`.
    fn block_softmax_grad(
        scores: FloatTensor<Self>,
        p_grad: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        spans: IntTensor<Self>,
        block: &Block,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Adds a product to a part of a tensor that is not shared.
    fn add_product(
        all: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        product: Gemm,
        part: [Slice; 4],
    ) -> FloatTensor<Self> {
        add_product::<Self>(all, lhs, rhs, product, part)
    }

    /// `sum(a · b)` over the last dimension, in float32.
    fn row_dot(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Returns the tensor as a batch of matrices that a product reads without a copy: the visible
    /// part of a key cache is not moved.
    fn batched(tensor: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Returns the tensor, contiguous in memory.
    fn contiguous(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Some queries of some heads, and the keys visible to them.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Range of batch rows.
    pub batch: Range<usize>,
    /// Range of key-value heads.
    pub heads: Range<usize>,
    /// Range of queries.
    pub rows: Range<usize>,
    /// Range of keys.
    pub keys: Range<usize>,
    /// Total number of key-value heads.
    pub kv_heads: usize,
    /// Query heads per key-value head.
    pub groups: usize,
    /// Total number of queries.
    pub length: usize,
    /// Position of the first query among the keys.
    pub offset: usize,
    pub spec: AttentionSpec,
}

impl Block {
    /// Shape of a tensor with one row per query: the heads of a group follow each other.
    fn shape(&self, width: usize) -> Shape {
        Shape::new([self.batch.len(), self.heads.len(), self.groups * self.rows.len(), width])
    }

    /// Number of rows of scores.
    #[cfg(feature = "cubecl")]
    pub fn score_rows(&self) -> usize {
        self.batch.len() * self.heads.len() * self.groups * self.rows.len()
    }

    /// Slices of the block's queries in `[batch, heads, length, width]`.
    fn query_slices(&self, width: usize) -> [Slice; 4] {
        let heads = self.heads.start * self.groups..self.heads.end * self.groups;
        [self.batch.clone(), heads, self.rows.clone(), 0..width].map(Slice::from)
    }

    /// Slices of its keys in `[batch, kv_heads, keys, width]`.
    fn key_slices(&self, width: usize) -> [Slice; 4] {
        [self.batch.clone(), self.heads.clone(), self.keys.clone(), 0..width].map(Slice::from)
    }

    /// Returns the block's rows of a tensor of queries.
    fn query_rows<B: BlockOps>(&self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let width = tensor.shape()[3];
        let part = slice::<B>(tensor, self.query_slices(width));
        reshape::<B>(part, self.shape(width))
    }

    /// Returns the block's rows of a tensor of keys or values.
    fn keys<B: BlockOps>(&self, tensor: FloatTensor<B>) -> FloatTensor<B> {
        let width = tensor.shape()[3];
        slice::<B>(tensor, self.key_slices(width))
    }

    /// Writes the block's rows into a tensor of queries.
    fn write<B: BlockOps>(
        &self,
        all: Option<FloatTensor<B>>,
        rows: FloatTensor<B>,
        shape: &Shape,
    ) -> FloatTensor<B> {
        let width = shape[3];
        let heads = self.heads.len() * self.groups;
        let rows =
            reshape::<B>(rows, Shape::new([self.batch.len(), heads, self.rows.len(), width]));
        if rows.shape() == *shape {
            return rows;
        }
        let all = all
            .unwrap_or_else(|| B::float_empty(shape.clone(), &rows.device(), rows.dtype().into()));
        B::float_slice_assign(all, &self.query_slices(width), rows)
    }

    /// Adds the products of all queries to the block's rows of a tensor of keys or values, in
    /// float32: blocks share keys.
    fn add<B: BlockOps>(
        &self,
        all: Option<FloatTensor<B>>,
        [lhs, rhs]: [FloatTensor<B>; 2],
        shape: &Shape,
    ) -> FloatTensor<B> {
        let product = Gemm::new().trans_lhs().f32_output();
        let slices = self.key_slices(shape[3]);
        let whole =
            slices.iter().zip(shape.iter()).all(|(slice, dim)| *slice == Slice::from(0..*dim));
        if all.is_none() && whole {
            return B::gemm(lhs, rhs, product);
        }
        let all =
            all.unwrap_or_else(|| B::float_zeros(shape.clone(), &rhs.device(), FloatDType::F32));
        B::add_product(all, lhs, rhs, product, slices)
    }
}

/// Splits an attention into blocks.
fn blocks(q: &Shape, k: &Shape, spec: AttentionSpec) -> Vec<Block> {
    let ([batch, heads, length], [kv_heads, keys]) = ([q[0], q[1], q[2]], [k[1], k[2]]);
    let groups = heads / kv_heads;
    let offset = keys - length;
    let height = ROWS.min(length);
    let per_head = (groups * height * keys).max(1);
    let heads_at_once = (SCORES / per_head).clamp(1, kv_heads);
    let batch_at_once = (SCORES / (per_head * kv_heads)).clamp(1, batch.max(1));
    let steps = |len: usize, step: usize| {
        (0..len).step_by(step.max(1)).map(move |start| start..(start + step).min(len))
    };
    let mut blocks = vec![];
    for batch in steps(batch, batch_at_once) {
        for heads in steps(kv_heads, heads_at_once) {
            for rows in steps(length, height) {
                let end = rows.end + offset;
                let start = spec.window.map_or(0, |window| {
                    let first = (rows.start + offset + 1).saturating_sub(window);
                    // Keeps the views of the keys aligned.
                    first / 64 * 64
                });
                let (batch, heads, keys) = (batch.clone(), heads.clone(), start..end);
                blocks.push(Block {
                    batch,
                    heads,
                    rows,
                    keys,
                    kv_heads,
                    groups,
                    length,
                    offset,
                    spec,
                });
            }
        }
    }
    blocks
}

/// Scores of a block before scaling, `q · kᵀ`, in float32.
fn scores<B: BlockOps>(q: FloatTensor<B>, k: FloatTensor<B>) -> FloatTensor<B> {
    B::gemm(q, k, Gemm::new().trans_rhs().f32_output())
}

/// Blockwise [`AttentionOps::causal_attention`](super::AttentionOps::causal_attention).
pub(super) fn forward<B: BlockOps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spans: IntTensor<B>,
    spec: AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (shape, dtype, device) = (q.shape(), q.dtype().into(), q.device());
    check(&shape, &k.shape(), &v.shape(), &spans.shape(), spec);
    let (q, k, v) = (B::contiguous(q), B::batched(k), B::batched(v));
    let rows = Shape::from(shape[..3].to_vec());
    // One-dimensional, hence contiguous: kernels write into it.
    let mut lse = B::float_empty([rows.num_elements()].into(), &device, FloatDType::F32);
    let mut out = None;
    for block in blocks(&shape, &k.shape(), spec) {
        let scores = scores::<B>(block.query_rows::<B>(q.clone()), block.keys::<B>(k.clone()));
        let (p, written) = B::block_softmax(scores, lse, spans.clone(), &block, dtype);
        lse = written;
        let rows = B::gemm(p, block.keys::<B>(v.clone()), Gemm::new());
        out = Some(block.write::<B>(out, rows, &shape));
    }
    let out = out.unwrap_or_else(|| B::float_empty(shape, &device, dtype));
    (out, B::float_reshape(lse, rows))
}

/// Blockwise [`AttentionOps::causal_attention_grad`](super::AttentionOps::causal_attention_grad).
/// With the probabilities `p` and `delta = sum(out_grad · out)` of each row,
/// `v_grad = pᵀ · out_grad`, `s_grad = scale · p · (out_grad · vᵀ - delta)`,
/// `q_grad = s_grad · k` and `k_grad = s_gradᵀ · q` (arXiv:2205.14135).
#[expect(clippy::too_many_arguments, reason = "what goes in and what came out")]
pub(super) fn backward<B: BlockOps>(
    grad: FloatTensor<B>,
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    spans: IntTensor<B>,
    spec: AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (shape, dtype) = (q.shape(), q.dtype().into());
    check(&shape, &k.shape(), &v.shape(), &spans.shape(), spec);
    let [q, k, v, grad, out] = [q, k, v, grad, out].map(B::contiguous);
    let keys = k.shape();
    let delta = B::row_dot(grad.clone(), out);
    let (mut q_grad, mut k_grad, mut v_grad) = (None, None, None);
    for block in blocks(&shape, &keys, spec) {
        let (q, grad) = (block.query_rows::<B>(q.clone()), block.query_rows::<B>(grad.clone()));
        let (k, v) = (block.keys::<B>(k.clone()), block.keys::<B>(v.clone()));
        let scores = scores::<B>(q.clone(), k.clone());
        let p_grad = self::scores::<B>(grad.clone(), v);
        let (lse, delta, spans) = (lse.clone(), delta.clone(), spans.clone());
        let (p, s_grad) = B::block_softmax_grad(scores, p_grad, lse, delta, spans, &block, dtype);
        v_grad = Some(block.add::<B>(v_grad, [p, grad], &keys));
        k_grad = Some(block.add::<B>(k_grad, [s_grad.clone(), q], &keys));
        q_grad = Some(block.write::<B>(q_grad, B::gemm(s_grad, k, Gemm::new()), &shape));
    }
    let device = q.device();
    let cast = |grad: Option<FloatTensor<B>>, shape: Shape| match grad {
        None => B::float_zeros(shape, &device, dtype),
        Some(grad) if FloatDType::from(grad.dtype()) == dtype => grad,
        Some(grad) => B::float_cast(grad, dtype),
    };
    (cast(q_grad, shape), cast(k_grad, keys.clone()), cast(v_grad, keys))
}

/// [`BlockOps::add_product`] by operations of any backend.
pub(super) fn add_product<B: BlockOps>(
    all: FloatTensor<B>,
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    product: Gemm,
    part: [Slice; 4],
) -> FloatTensor<B> {
    let sum = B::float_add(slice::<B>(all.clone(), part), B::gemm(lhs, rhs, product));
    B::float_slice_assign(all, &part, sum)
}

fn slice<B: BlockOps>(tensor: FloatTensor<B>, slices: [Slice; 4]) -> FloatTensor<B> {
    B::float_slice(tensor, &slices)
}

fn reshape<B: BlockOps>(tensor: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    if tensor.shape() == shape { tensor } else { B::float_reshape(tensor, shape) }
}
