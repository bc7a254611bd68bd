//! Fused attention kernels in CUDA C++ for tensor cores: scores stay in registers. Other devices,
//! dtypes and widths use the [`blocks`](crate::attention::blocks).

use crate::{
    attention::{self, AttentionSpec, blocks::BlockOps},
    cube::{check, check_contiguous, empty},
    cuda::{Kernel, Scalar, has_tensor_cores},
};
use burn::{
    backend::TensorMetadata,
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
    spans: &'a CubeTensor,
    spec: AttentionSpec,
}

impl<'a> Call<'a> {
    /// Checks the kernels' requirements: the shapes, `k` and `v` in the same layout, and the other
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
        assert_eq!(apart(k), apart(v), "attention: how k and v are laid out");
        // The kernels' counters have 32 bits, and a grid has 65,535 tiles at most.
        let (most, keys) = (i32::MAX as usize, k.shape()[2]);
        let fits = len(spans) < most && keys <= usize::from(u16::MAX) * TILE;
        assert!(fits, "attention: {keys} keys are too many");
        Self { q, k, spans, spec }
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
        }
    }

    /// Scalars of every kernel: `SIZES` in the source.
    fn sizes(&self) -> Vec<Scalar> {
        let (q, k) = (self.q.shape(), self.k.shape());
        let int = |value: usize| Scalar::I32(value as i32);
        vec![
            int(q[1]),
            int(k[1]),
            int(q[2]),
            int(k[2]),
            Scalar::I64(apart(self.k) as i64),
            int(self.spans.shape()[1]),
            int(self.spec.window.unwrap_or(k[2]).min(k[2])),
            Scalar::F32(self.spec.scale),
        ]
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
    let [k, v] = keys_and_values(k, v);
    let (shape, call) = (q.shape(), Call::new([&q, &k, &v], &spans, &[], spec));
    let out = empty(&q, shape.clone(), q.dtype);
    let lse = empty(&q, Shape::from(shape[..3].to_vec()), DType::F32);
    let read = [&q, &k, &v, &spans].map(|tensor| tensor.handle.clone()).to_vec();
    let written = vec![out.handle.clone(), lse.handle.clone()];
    // SAFETY: the parameters are those of the source, and the buffers as large as `Call` has checked: the
    // kernels stay inside, whatever the spans.
    unsafe {
        let kernel = call.kernel("attention_forward", 5);
        kernel.launch(&q.client, grid(&q), read, written, call.sizes());
    }
    (out, lse)
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
    let [grad, q, out, lse, spans] = [grad, q, out, lse, spans].map(into_contiguous);
    let [k, v] = keys_and_values(k, v);
    let delta = CubeBackend::row_dot(grad.clone(), out);
    let len = q.shape().num_elements();
    let rows = len / q.shape()[3];
    let others = [(&grad, q.dtype, len), (&lse, DType::F32, rows), (&delta, DType::F32, rows)];
    let call = Call::new([&q, &k, &v], &spans, &others, spec);
    let [q_grad, k_grad, v_grad] = [&q, &k, &v].map(|of| empty(of, of.shape(), of.dtype));
    let read = [&q, &k, &v, &grad, &lse, &delta, &spans].map(|tensor| tensor.handle.clone());
    let written = |grads: &[&CubeTensor]| grads.iter().map(|grad| grad.handle.clone()).collect();
    // SAFETY: as above.
    unsafe {
        let kernel = call.kernel("attention_query_grads", 6);
        let written_to = written(&[&q_grad]);
        kernel.launch(&q.client, grid(&q), read.to_vec(), written_to, call.sizes());
        let kernel = call.kernel("attention_key_grads", 6);
        let written_to = written(&[&k_grad, &v_grad]);
        kernel.launch(&q.client, grid(&k), read.to_vec(), written_to, call.sizes());
    }
    (q_grad, k_grad, v_grad)
}

/// Makes the rows of both contiguous, with the same distance between matrices in both, and aligned
/// to loads of 16 bytes.
fn keys_and_values(k: CubeTensor, v: CubeTensor) -> [CubeTensor; 2] {
    let [k, v] = [k, v].map(CubeBackend::batched);
    let alike = apart(&k) == apart(&v) && apart(&k).is_multiple_of(8);
    if alike { [k, v] } else { [k, v].map(into_contiguous) }
}

/// Number of elements from one matrix to the next. The stride of a dimension of size 1 has no
/// meaning.
fn apart(tensor: &CubeTensor) -> usize {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    match (shape[0], shape[1]) {
        (1, 1) => shape[2] * shape[3],
        (_, 1) => strides[0],
        _ => strides[1],
    }
}
