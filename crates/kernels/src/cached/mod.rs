//! Keys and values of generation: stored where they belong, and attended to by a few new queries.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use crate::attention::{AttentionSpec, attention_forward};
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Device, Int, Tensor},
};

/// Stores new keys and values in a cache, each at its place. A GPU writes into the memory of the cache itself, also
/// if other tensors share it, unless its rows are padded; a CPU copies it then. Nothing has a graph.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_kernels::store_cached;
///
/// // A token of the second of two rows, at its first place.
/// let device = Device::default();
/// let [keys, k] = [[2, 1, 4, 1], [1, 1, 1, 1]].map(|shape| Tensor::<4>::zeros(shape, &device));
/// let places = Tensor::<3, Int>::from_ints([[[1]], [[0]]], &device);
/// let (keys, _) = store_cached(keys.clone(), keys, k.clone() + 5.0, k, places);
/// keys.flatten::<1>(0, 3).into_data().assert_eq(&[0.0f32, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0].into(), true);
/// ```
///
/// # Shapes
/// - keys, values, output: `[rows, kv_heads, capacity, head_dim]`
/// - k, v: `[batch, kv_heads, new, head_dim]`
/// - places: `[2, batch, new]`: the row of the cache, and the place in that row; what has none there is not stored
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn store_cached(
    keys: Tensor<4>,
    values: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    places: Tensor<3, Int>,
) -> (Tensor<4>, Tensor<4>) {
    let ([_, heads, _, width], [batch, _, new, _]) = (keys.dims(), k.dims());
    assert_eq!(keys.dims(), values.dims(), "a cache: keys and values");
    assert_eq!([k.dims(), v.dims()], [[batch, heads, new, width]; 2], "a cache: new keys, values");
    assert_eq!(places.dims(), [2, batch, new], "a cache: the places of k {:?}", k.dims());
    assert!([&values, &k, &v].iter().all(|x| x.dtype() == keys.dtype()), "a cache: the dtypes");
    let [keys, values, k, v] = [keys, values, k, v].map(|x| x.inner().into_dispatch());
    let places = places.cast(DType::I32).into_dispatch();
    let (keys, values) = Dispatch::store_cached(keys, values, k, v, places);
    (Tensor::from_dispatch(keys), Tensor::from_dispatch(values))
}

/// Causal attention of the last tokens of texts to the keys and values of a [cache](store_cached), in which their own
/// are, too: `softmax(scale · q · kᵀ) · v`, and the log-sum-exp of each row of scores. Texts have lengths of their own. A
/// query sees no later key and none before its window; with no key, both are zero. Nothing has a graph.
///
/// # Shapes
/// - q, first output: `[batch, heads, new, head_dim]`
/// - keys, values: `[rows, kv_heads, capacity, head_dim]`
/// - texts: `[2, batch]`: the row of the cache, and the number of tokens there, the new ones included; a text has none in a row
///   that does not exist
/// - second output: `[batch, heads, new]`, in float32
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn cached_attention(
    q: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    texts: Tensor<2, Int>,
    spec: AttentionSpec,
) -> (Tensor<4>, Tensor<3>) {
    let ([batch, heads, _, width], [_, kv_heads, _, key_width]) = (q.dims(), keys.dims());
    assert_eq!(key_width, width, "attention: the keys of q");
    assert_eq!(keys.dims(), values.dims(), "attention: keys and values");
    let shared = heads.checked_rem(kv_heads) == Some(0);
    assert!(shared, "attention: {heads} heads over {kv_heads}");
    assert!(spec.window != Some(0), "attention: a window of no keys");
    assert_eq!(texts.dims(), [2, batch], "attention: the texts of q");
    assert!([&keys, &values].iter().all(|x| x.dtype() == q.dtype()), "attention: the dtypes");
    let [q, keys, values] = [q, keys, values].map(Tensor::inner);
    let texts = texts.cast(DType::I32);
    if !in_one_pass(&q.device(), width) {
        return by_spans(q, [keys, values], texts, spec);
    }
    let [q, keys, values] = [q, keys, values].map(Tensor::into_dispatch);
    let texts = texts.into_dispatch();
    let (out, lse) = Dispatch::cached_attention(q, keys, values, texts, spec);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Returns `true` if a device has a pass of its own for heads of this width: the CPU, and a GPU whose planes have 32 units.
fn in_one_pass(device: &Device, width: usize) -> bool {
    #[cfg(feature = "cubecl")]
    if let Some(client) = crate::cube::client(device) {
        return cube::supports(&client, width);
    }
    let _ = (device, width);
    true
}

/// [`cached_attention`] by [`attention_forward`], which reads all places of the rows.
fn by_spans(
    q: Tensor<4>,
    cache: [Tensor<4>; 2],
    texts: Tensor<2, Int>,
    spec: AttentionSpec,
) -> (Tensor<4>, Tensor<3>) {
    let ([batch, _, new, _], [rows, _, capacity, _]) = (q.dims(), cache[0].dims());
    let device = q.device();
    let row = texts.clone().narrow(0, 0, 1).reshape([batch, 1]);
    let exists = row.clone().greater_equal_elem(0).bool_and(row.clone().lower_elem(rows as i64));
    let length = texts.narrow(0, 1, 1).reshape([batch, 1]).clamp(0, capacity as i64);
    let length = length * exists.int();
    let later = Tensor::<1, Int>::arange(0..new as i64, &device).reshape([1, new]);
    // One past the last key that each query sees.
    let end = (length.clone() + later + (1 - new as i64)).clamp_min(0);
    let end = end.clone() - (end - length).clamp_min(0);
    let first = match spec.window {
        None => end.zeros_like(),
        Some(window) => (end.clone() - window as i64).clamp_min(0),
    };
    let spans = Tensor::cat(vec![first.unsqueeze::<3>(), end.unsqueeze::<3>()], 0);
    let row = row.clamp(0, rows as i64 - 1).reshape([batch]);
    let [keys, values] = cache.map(|all| all.select(0, row.clone()));
    attention_forward([q, keys, values], spans, AttentionSpec { window: None, ..spec })
}

/// Writes integers over others. A GPU writes into the memory of `to` itself, also if other tensors share it, unless its
/// rows are padded: what was [recorded](crate::record()) reads them from there.
///
/// # Shapes
/// - to, from, output: the same
///
/// # Panics
/// If the shapes differ.
pub fn overwrite<const D: usize>(to: Tensor<D, Int>, from: Tensor<D, Int>) -> Tensor<D, Int> {
    assert_eq!(to.dims(), from.dims(), "the shape of what is overwritten");
    let from = from.cast(to.dtype()).into_dispatch();
    Tensor::from_dispatch(Dispatch::overwrite(to.into_dispatch(), from))
}

/// [`overwrite`] for floats.
///
/// # Shapes
/// - to, from, output: the same
///
/// # Panics
/// If the shapes differ.
pub fn overwrite_float<const D: usize>(to: Tensor<D>, from: Tensor<D>) -> Tensor<D> {
    assert_eq!(to.dims(), from.dims(), "the shape of what is overwritten");
    let from = from.cast(to.dtype()).inner().into_dispatch();
    Tensor::from_dispatch(Dispatch::overwrite_float(to.inner().into_dispatch(), from))
}

/// [`store_cached`], [`cached_attention`] and [`overwrite`] on primitives, whose shapes they have checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait CachedOps: Backend {
    /// Stores keys and values.
    #[fusion(meta = |keys, values, _k, _v, _places| (keys.clone(), values.clone()))]
    fn store_cached(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        places: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Writes integers over others.
    #[fusion(dtype = to, shape = to)]
    fn overwrite(to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self>;

    /// Writes floats over others.
    #[fusion(dtype = to, shape = to)]
    fn overwrite_float(to: FloatTensor<Self>, from: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Attention to a cache, and the log-sum-exps.
    #[fusion(meta = |q, _keys, _values, _texts, _spec| (
        q.clone(),
        TensorSpec::new(Shape::from(q.shape[..3].to_vec()), DType::F32),
    ))]
    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn both_ways_agree() {
        let device = Device::flex();
        let random = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        for (new, window) in [(1, None), (1, Some(3)), (4, None), (4, Some(2))] {
            let (q, keys, values) =
                (random([5, 4, new, 8]), random([3, 2, 12, 8]), random([3, 2, 12, 8]));
            let texts = Tensor::from_ints([[2, 0, -1, 3, 1], [12, 5, 4, 4, 2]], &device);
            let spec = AttentionSpec { scale: 0.4, window };
            let cache = [keys.clone(), values.clone()];
            let (out, lse) = by_spans(q.clone(), cache, texts.clone(), spec);
            let (expected, sums) = cached_attention(q, keys, values, texts, spec);
            out.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::default());
            lse.into_data().assert_approx_eq::<f32>(&sums.into_data(), Tolerance::default());
        }
    }
}
