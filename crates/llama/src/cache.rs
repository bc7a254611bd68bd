//! Key-value cache of generation.

use burn::tensor::{DType, Device, Int, Tensor};
use burn_lora_kernels::{AttentionSpec, attention_forward, cached_attention, store_cached};

/// Key-value cache of all layers, for generation: of each row of a batch the tokens from the first on, whatever the
/// lengths of the other rows.
///
/// It has `2 · layers · rows · capacity · kv_heads · head_dim` elements.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// Key-value cache of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys and values, `[rows, kv_heads, capacity, head_dim]`.
    stored: Option<[Tensor<4>; 2]>,
    rows: usize,
    capacity: usize,
    turn: Option<Turn>,
}

/// Where the next tokens go.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Row and place of each token, `[2, batch, new]`.
    pub places: Tensor<3, Int>,
    /// Row and number of tokens of each text, the new ones included, `[2, batch]`; `None` if texts begin with these tokens.
    pub texts: Option<Tensor<2, Int>>,
}

impl KvCache {
    /// Creates an empty cache for `layers` layers and at most `capacity` tokens in each row.
    pub fn new(layers: usize, rows: usize, capacity: usize) -> Self {
        let layer = || LayerCache { stored: None, rows, capacity, turn: None };
        Self { layers: (0..layers).map(|_| layer()).collect(), capacity }
    }

    /// Maximum number of tokens in a row.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says where the next tokens go.
    pub fn set_turn(&mut self, turn: &Turn) {
        self.layers.iter_mut().for_each(|layer| layer.turn = Some(turn.clone()));
    }

    /// Returns the cache of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Makes room for more tokens in each row.
    pub fn grow(&mut self, capacity: usize) {
        for layer in &mut self.layers {
            layer.stored = layer.stored.take().map(|stored| {
                stored.map(|all| {
                    let [rows, heads, old, width] = all.dims();
                    let shape = [rows, heads, capacity, width];
                    empty(shape, &all.device(), all.dtype())
                        .slice_assign([0..rows, 0..heads, 0..old, 0..width], all)
                })
            });
            layer.capacity = capacity;
        }
        self.capacity = capacity;
    }
}

impl LayerCache {
    /// Stores the keys and values of new tokens, and returns the attention of their queries to them and those before
    /// ([`attention`](burn_lora_kernels::attention())).
    ///
    /// # Shapes
    /// - q, output: `[batch, heads, new, head_dim]`
    /// - k, v: `[batch, kv_heads, new, head_dim]`
    /// - spans: those of the [context](crate::Context)
    ///
    /// # Panics
    /// If shapes, dtypes or devices do not fit each other or those before.
    pub fn attend(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        spans: Tensor<3, Int>,
        spec: AttentionSpec,
    ) -> Tensor<4> {
        self.attend_with_lse(q, k, v, spans, spec).0
    }

    /// [`attend`](Self::attend), and the log-sum-exp of each row of scores, `[batch, heads, new]`.
    pub(crate) fn attend_with_lse(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        spans: Tensor<3, Int>,
        spec: AttentionSpec,
    ) -> (Tensor<4>, Tensor<3>) {
        let Turn { places, texts } = self.turn.clone().expect("the generator sets it");
        let [_, heads, _, width] = k.dims();
        let device: Device = k.device().inner();
        let shape = [self.rows, heads, self.capacity, width];
        let empty = || empty(shape, &device, k.dtype());
        // Taken out, so that nothing else holds them and they are written in place.
        let [keys, values] = self.stored.take().unwrap_or_else(|| [empty(), empty()]);
        let (keys, values) = store_cached(keys, values, k.clone(), v.clone(), places);
        let found = match texts {
            None => attention_forward([q, k, v], spans, spec),
            Some(texts) => cached_attention(q, keys.clone(), values.clone(), texts, spec),
        };
        self.stored = Some([keys, values]);
        found
    }
}

/// Zeros whose rows a GPU does not pad.
fn empty(shape: [usize; 4], device: &Device, dtype: DType) -> Tensor<4> {
    Tensor::<1>::zeros([shape.iter().product::<usize>()], (device, dtype)).reshape(shape)
}
