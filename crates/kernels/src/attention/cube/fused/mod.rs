//! Fused attention kernels in CUDA C++ for tensor cores: scores stay in registers. Other devices,
//! dtypes and widths use the [`blocks`](crate::attention::blocks).

use crate::{
    attention::{self, AttentionSpec, blocks::BlockOps},
    cube::{check, check_contiguous, empty},
    cuda::{Kernel, Scalar, compute_capability, has_tensor_cores},
};
use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::client::Client;

/// Rows per tile, 16 per warp.
const TILE: usize = 64;

/// Minimal number of queries for which the fused kernels pay off: not for tokens generated one by
/// one.
const FEW: usize = 16;

/// Returns `true` if there are fused kernels for this head width and dtype.
pub(in crate::attention) fn supports(client: &Client, dtype: DType, head_dim: usize) -> bool {
    let fits = matches!(dtype, DType::BF16 | DType::F16) && matches!(head_dim, 64 | 128);
    fits && has_tensor_cores(client)
}

/// Returns `true` if the fused kernels support this query shape.
pub(super) fn takes(q: &CubeTensor) -> bool {
    let shape = q.shape();
    shape[2] >= FEW && supports(&q.client, q.dtype, shape[3])
}

/// Arguments of an attention, as the kernels need them.
struct Call<'a> {
    q: &'a CubeTensor,
    k: &'a CubeTensor,
    v: &'a CubeTensor,
    spans: &'a CubeTensor,
    spec: AttentionSpec,
}

impl<'a> Call<'a> {
    /// Checks the kernels' requirements: the shapes, heads of `k` and `v` without gaps, and the other
    /// tensors contiguous, each with the given number of elements.
    fn new(
        [q, k, v]: [&'a CubeTensor; 3],
        spans: &'a CubeTensor,
        others: &[(&CubeTensor, DType, usize)],
        spec: AttentionSpec,
    ) -> Self {
        attention::check(&q.shape(), &k.shape(), &v.shape(), &spans.shape(), spec);
        let len = |tensor: &CubeTensor| tensor.shape().num_elements();
        let own = [(q, q.dtype, len(q)), (spans, DType::I32, len(spans))];
        for &(tensor, dtype, len) in own.iter().chain(others) {
            check_contiguous(&q.client, tensor, dtype, len);
        }
        for tensor in [k, v] {
            check(&q.client, tensor, q.dtype);
        }
        assert!([k, v].into_iter().all(has_rows), "attention: how k and v are laid out");
        // The kernels' counters have 32 bits, and a grid has 65,535 tiles at most.
        let (most, keys) = (i32::MAX as usize, k.shape()[2]);
        let fits = len(spans) < most && keys <= usize::from(u16::MAX) * TILE;
        assert!(fits, "attention: {keys} keys are too many");
        Self { q, k, v, spans, spec }
    }
}

impl Call<'_> {
    /// Creates a kernel with `tiles` tiles in shared memory, from a multiple of 1024 bytes on, and 16
    /// bytes for each row of two tiles of queries: lse, delta and range.
    fn kernel(&self, name: &'static str, tiles: usize) -> Kernel {
        let (head, bf16) = (self.q.shape()[3], usize::from(self.q.dtype == DType::BF16));
        Kernel {
            source: include_str!("attention.cu"),
            defines: vec![("HEAD", head), ("BF16", bf16), ("TILE", TILE)],
            name,
            threads: TILE / 16 * 32,
            shared_bytes: (tiles * head + 16) * 2 * TILE + 1024,
            overlaps: false,
        }
    }

    /// Scalars of every kernel: `SIZES` in the source.
    fn sizes(&self) -> Vec<Scalar> {
        let (q, k) = (self.q.shape(), self.k.shape());
        let int = |value: usize| Scalar::I32(value as i32);
        let strides = [self.k, self.v].map(|tensor| {
            let strides = tensor.meta.strides();
            [strides[0], strides[1], strides[2]].map(|stride| Scalar::I64(stride as i64))
        });
        let sizes = [q[1], k[1], q[2], k[2]].map(int);
        let window = self.spec.window.unwrap_or(k[2]).min(k[2]);
        let rest = [int(self.spans.shape()[1]), int(window), Scalar::F32(self.spec.scale)];
        [&sizes[..], strides.as_flattened(), &rest].concat()
    }
}

/// Grid with one block per tile of queries, or of keys. Tiles come last: those with the most work
/// start first, in all heads.
fn grid(tensor: &CubeTensor) -> [usize; 3] {
    let shape = tensor.shape();
    [shape[1], shape[0], shape[2].div_ceil(TILE)]
}

/// [`AttentionOps::causal_attention`](crate::attention::AttentionOps::causal_attention).
pub(super) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    spans: CubeTensor,
    spec: AttentionSpec,
) -> (CubeTensor, CubeTensor) {
    let [q, spans] = [q, spans].map(into_contiguous);
    let [k, v] = [k, v].map(rows);
    let (shape, call) = (q.shape(), Call::new([&q, &k, &v], &spans, &[], spec));
    let out = tokens_first(&q);
    let lse = empty(&q, Shape::from(shape[..3].to_vec()), DType::F32);
    let read = [&q, &k, &v, &spans].map(|tensor| tensor.handle.clone()).to_vec();
    let written = vec![out.handle.clone(), lse.handle.clone()];
    // SAFETY: the parameters are those of the source, and the buffers as large as `Call` has checked: the
    // kernels stay inside, whatever the spans.
    unsafe {
        // Where products are `wgmma`, the queries' tile becomes one of keys.
        let wgmma = compute_capability(&q.client).is_ok_and(|capability| capability == (9, 0));
        let kernel = call.kernel("attention_forward", if wgmma { 4 } else { 5 });
        kernel.launch(&q.client, grid(&q), read, written, call.sizes());
    }
    (exchanged(out), lse)
}

/// [`AttentionOps::causal_attention_grad`](crate::attention::AttentionOps::causal_attention_grad).
#[expect(clippy::too_many_arguments, reason = "what goes in and what came out")]
pub(super) fn backward(
    grad: CubeTensor,
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    out: CubeTensor,
    lse: CubeTensor,
    spans: CubeTensor,
    spec: AttentionSpec,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [q, lse, spans] = [q, lse, spans].map(into_contiguous);
    let [grad, out] = [grad, out].map(|tensor| into_contiguous(exchanged(tensor)));
    let [k, v] = [k, v].map(rows);
    let delta = CubeBackend::row_dot(grad.clone(), out);
    let len = q.shape().num_elements();
    let rows = len / q.shape()[3];
    let others = [(&grad, q.dtype, len), (&lse, DType::F32, rows), (&delta, DType::F32, rows)];
    let call = Call::new([&q, &k, &v], &spans, &others, spec);
    let [q_grad, k_grad] = [&q, &k].map(|of| empty(of, of.shape(), of.dtype));
    let v_grad = tokens_first(&v);
    let read = [&q, &k, &v, &grad, &lse, &delta, &spans].map(|tensor| tensor.handle.clone());
    let written = |grads: &[&CubeTensor]| grads.iter().map(|grad| grad.handle.clone()).collect();
    // SAFETY: as above.
    unsafe {
        let kernel = call.kernel("attention_query_grads", 4);
        let written_to = written(&[&q_grad]);
        kernel.launch(&q.client, grid(&q), read.to_vec(), written_to, call.sizes());
        let kernel = call.kernel("attention_key_grads", 6);
        let written_to = written(&[&k_grad, &v_grad]);
        kernel.launch(&q.client, grid(&k), read.to_vec(), written_to, call.sizes());
    }
    (q_grad, k_grad, exchanged(v_grad))
}

/// Creates a tensor for a result of this shape, `[batch, heads, sequence, head_dim]`, with the heads of
/// a token side by side: `[batch, sequence, heads, head_dim]`.
fn tokens_first(like: &CubeTensor) -> CubeTensor {
    let shape = like.shape();
    let shape = Shape::new([shape[0], shape[2], shape[1], shape[3]]);
    empty(like, shape, like.dtype)
}

/// Exchanges heads and sequence, without a copy.
fn exchanged(tensor: CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(tensor, 1, 2)
}

/// Makes the rows contiguous, and aligned to loads of 16 bytes, if they are not.
fn rows(tensor: CubeTensor) -> CubeTensor {
    if has_rows(&tensor) { tensor } else { into_contiguous(tensor) }
}

/// Returns `true` if the rows are contiguous, and aligned to loads of 16 bytes.
fn has_rows(tensor: &CubeTensor) -> bool {
    let (strides, start) = (tensor.meta.strides(), tensor.handle.offset_start.unwrap_or(0));
    let aligned = strides[..3].iter().all(|stride| stride.is_multiple_of(8));
    strides[3] == 1 && aligned && start.is_multiple_of(16) && !tensor.meta.is_tiled()
}
