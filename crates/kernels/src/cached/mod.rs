//! Keys and values of generation: stored where they belong, and attended to by a few new queries.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

use crate::attention::AttentionSpec;
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Int, Tensor},
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
    let [q, keys, values] = [q, keys, values].map(|x| x.inner().into_dispatch());
    let texts = texts.cast(DType::I32).into_dispatch();
    let (out, lse) = Dispatch::cached_attention(q, keys, values, texts, spec);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Writes integers over others. A GPU writes into the memory of `to` itself, also if other tensors share it, unless its
/// rows are padded: what was [captured](burn::tensor::capture) reads them from there.
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
