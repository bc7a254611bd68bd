//! Keys and values of the tokens so far.

use burn::tensor::Tensor;

/// Keys and values of every layer, for generation: memory for all tokens is taken once.
///
/// Its size is `2 · layers · batch · capacity · kv_heads · head_dim` elements.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// The same of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys and values, `[batch, kv_heads, capacity, head_dim]`.
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

    /// Tokens of each row that there is memory for.
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
        let shape = [batch, heads, self.capacity, width];
        let options = (&k.device(), k.dtype());
        assert_eq!(k.dims(), v.dims(), "a cache: keys and values");
        for all in self.stored.iter().flatten() {
            assert_eq!(all.dims(), shape, "a cache: the shape of keys and values");
            assert_eq!((&all.device(), all.dtype()), options, "a cache: the device and the dtype");
        }
        // Taken out, so that nothing else holds them and they are written in place.
        let [keys, values] = self
            .stored
            .take()
            .unwrap_or_else(|| [Tensor::zeros(shape, options), Tensor::zeros(shape, options)]);
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
