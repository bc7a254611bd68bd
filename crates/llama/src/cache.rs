//! Key-value cache of generation.

use burn::tensor::Tensor;

/// Tokens allocated beyond those present: most generations allocate once.
const ROOM: usize = 4096;

/// Key-value cache of all layers, for generation.
///
/// It has `2 · layers · batch · tokens · kv_heads · head_dim` elements. Memory is allocated for all
/// tokens of the capacity, or for a few thousand at a time.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// Key-value cache of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys and values, `[batch, kv_heads, allocated tokens, head_dim]`.
    stored: Option<[Tensor<4>; 2]>,
    length: usize,
    capacity: usize,
}

impl KvCache {
    /// Creates an empty cache for `layers` layers and at most `capacity` tokens per row.
    pub fn new(layers: usize, capacity: usize) -> Self {
        let layer = || LayerCache { stored: None, length: 0, capacity };
        Self { layers: (0..layers).map(|_| layer()).collect(), capacity }
    }

    /// Number of cached tokens per row.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Maximum number of tokens per row.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the cache of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// Appends the keys and values of new tokens and returns those of all tokens.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_lora_llama::KvCache;
    ///
    /// let mut cache = KvCache::new(1, 64);
    /// for new in [5, 1] {
    ///     let keys = Tensor::<4>::zeros([1, 2, new, 16], &Device::default());
    ///     let (keys, _values) = cache.layer(0).append(keys.clone(), keys);
    ///     assert_eq!(keys.dims(), [1, 2, cache.length(), 16]);
    /// }
    /// assert_eq!(cache.length(), 6);
    /// ```
    ///
    /// # Shapes
    /// - k, v: `[batch, kv_heads, new, head_dim]`
    /// - output: `[batch, kv_heads, before + new, head_dim]`
    ///
    /// # Panics
    /// If the tokens exceed the capacity, keys and values differ in shape, or rows, heads, width,
    /// dtype or device differ from those before.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
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
