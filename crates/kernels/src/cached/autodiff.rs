//! Generation has no gradients.

use super::CachedOps;
use crate::attention::AttentionSpec;
use burn::backend::{
    Autodiff,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};

impl<B: CachedOps, C: CheckpointStrategy> CachedOps for Autodiff<B, C> {
    fn store_cached(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        places: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [keys, values, k, v] = [keys, values, k, v].map(|x| x.into_primitive());
        let (keys, values) = B::store_cached(keys, values, k, v, places);
        (FloatTensor::<Self>::new(keys), FloatTensor::<Self>::new(values))
    }

    fn overwrite(to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self> {
        B::overwrite(to, from)
    }

    fn overwrite_float(to: FloatTensor<Self>, from: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::overwrite_float(to.into_primitive(), from.into_primitive()))
    }

    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [q, keys, values] = [q, keys, values].map(|x| x.into_primitive());
        let (out, lse) = B::cached_attention(q, keys, values, texts, spec);
        (FloatTensor::<Self>::new(out), FloatTensor::<Self>::new(lse))
    }
}
