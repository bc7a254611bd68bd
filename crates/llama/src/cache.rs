//! Keys and values of the tokens so far.

use burn::tensor::Tensor;

/// Tokens that memory is taken for beyond those that there are: once in most generations.
const ROOM: usize = 4096;

/// Keys and values of every layer, for generation.
///
/// Its size is `2 · layers · batch · tokens · kv_heads · head_dim` elements, where memory is taken for
/// all tokens of the capacity, or a few thousand at a time.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// The same of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys and values, `[batch, kv_heads, tokens that there is memory for, head_dim]`.
    stored: Option<[Tensor<4>; 2]>,
    length: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache for so many layers, and tokens of each row.
    pub fn new(layers: usize, capacity: usize) -> Self {
        let layer = || LayerCache { stored: None, length: 0, capacity };
        Self { layers: (0..layers).map(|_| layer()).collect(), capacity }
    }

    /// Tokens of each row so far.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Tokens of each row at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// Adds the keys and values of new tokens and returns those of all.
    ///
    /// # Panics
    /// If they are more than the cache has room for, or of other rows, heads, dtype or device than those
    /// before.
    pub(crate) fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, heads, count, width] = k.dims();
        let (start, end) = (self.length, self.length + count);
        assert!(end <= self.capacity, "a cache of {} tokens, {end} wanted", self.capacity);
        assert_eq!(k.dims(), v.dims(), "a cache: keys and values");
        for all in self.stored.iter().flatten() {
            let [rows, groups, _, size] = all.dims();
            assert_eq!(
                [rows, groups, size],
                [batch, heads, width],
                "a cache: the shape of keys and values"
            );
            let same = (all.device(), all.dtype()) == (k.device(), k.dtype());
            assert!(same, "a cache: the device and the dtype");
        }
        let room = (end.saturating_add(ROOM)).max(start.saturating_mul(2)).min(self.capacity);
        let empty = || Tensor::zeros([batch, heads, room, width], (&k.device(), k.dtype()));
        // Taken out, so that nothing else holds them and they are written in place.
        let [keys, values] = match self.stored.take() {
            None => [empty(), empty()],
            Some(stored) if stored[0].dims()[2] >= end => stored,
            Some(stored) => stored.map(|all| {
                let ranges = [0..batch, 0..heads, 0..start, 0..width];
                empty().slice_assign(ranges, all.narrow(2, 0, start))
            }),
        };
        let ranges = [0..batch, 0..heads, start..end, 0..width];
        let keys = keys.slice_assign(ranges.clone(), k);
        let values = values.slice_assign(ranges, v);
        self.length = end;
        let seen = [keys.clone(), values.clone()].map(|all| all.narrow(2, 0, end));
        self.stored = Some([keys, values]);
        let [keys, values] = seen;
        (keys, values)
    }
}

#[cfg(test)]
mod tests {
    use super::{KvCache, ROOM};
    use burn::tensor::{Device, Tensor};

    #[test]
    fn memory_grows_with_the_tokens_and_not_with_the_capacity() {
        let device = Device::default();
        let mut cache = KvCache::new(1, usize::MAX);
        let mut expected: Vec<f32> = vec![];
        for (turn, count) in [3, ROOM, 1, ROOM + 7].into_iter().enumerate() {
            let new: Vec<f32> = (0..count).map(|at| (1000 * turn + at) as f32).collect();
            expected.extend(&new);
            let keys = Tensor::<1>::from_floats(new.as_slice(), &device).reshape([1, 1, count, 1]);
            let (keys, values) = cache.layer(0).append(keys.clone(), -keys);
            let [keys, values] = [keys, -values].map(|all| all.into_data().try_into_vec::<f32>());
            assert_eq!(keys.unwrap(), expected);
            assert_eq!(values.unwrap(), expected);
        }
    }
}
