//! Layers of a Llama with an adapter: their sizes, and their trained parameters.

use crate::{OptimizerConfig, TrainError};
use burn_lora_adapter::{Adaptable, Bias, LayerKind, LayerPlan, Method, Role, Site, UpdateTensor};
use burn_lora_llama::{Llama, LlamaConfig};
use burn_lora_quant::StorageFormat;
use std::collections::{BTreeMap, BTreeSet};

/// Path of the output head.
const HEAD: &str = "lm_head";

/// A layer that can carry adapters.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub kind: LayerKind,
    /// Outputs and inputs, as A and B see them.
    pub out: usize,
    pub width: usize,
    /// Whether the base has a bias.
    pub bias: bool,
    /// Whether that bias is trained.
    pub trains_bias: bool,
    /// Whether the base is quantized if that is asked for.
    pub quantizable: bool,
    /// Whether the checkpoint has it quantized.
    pub stored: bool,
    /// Whether its values are those of another layer: a tied head.
    pub shared: bool,
    pub plan: Option<LayerPlan>,
    /// Parameters of its update.
    pub tensors: Vec<UpdateTensor>,
    /// Whether A is frozen (LoRA-FA).
    pub frozen_a: bool,
    /// Float32 values that its update copies from parameters.
    pub copied: usize,
}

impl Layer {
    pub fn values(&self) -> usize {
        self.out * self.width
    }

    /// Returns the rank of its update, if it has one.
    pub fn rank(&self) -> Option<usize> {
        match self.plan {
            Some(LayerPlan::Update { rank, .. }) if rank > 0 => Some(rank),
            _ => None,
        }
    }

    /// Returns `true` if a copy of the layer is trained.
    pub fn is_copied(&self) -> bool {
        self.plan == Some(LayerPlan::Save)
    }

    /// Returns the number of values of A and B.
    pub fn low_rank_values(&self) -> usize {
        self.rank().unwrap_or(0) * (self.out + self.width)
    }

    fn is_trained(&self, tensor: &UpdateTensor) -> bool {
        tensor.is_trained() && !(self.frozen_a && tensor.role == Role::A)
    }

    /// Returns the lengths of the trained parameters.
    pub fn trained(&self) -> Vec<usize> {
        let trained = self.tensors.iter().filter(|tensor| self.is_trained(tensor));
        let mut lengths: Vec<_> = trained.map(UpdateTensor::values).collect();
        if self.is_copied() {
            lengths.push(self.values());
            lengths.extend(self.bias.then_some(self.out));
        }
        lengths.extend(self.trains_bias.then_some(self.out));
        lengths
    }
}

/// Layers of one decoder layer, by path.
pub(super) type Block = BTreeMap<String, Layer>;

/// All layers of a model.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub embedding: Layer,
    pub blocks: Vec<Block>,
    pub norm: Layer,
    pub head: Layer,
    /// Bytes of the tensors that updates share.
    pub shared_bytes: usize,
    pub dora: bool,
    pub dropout: bool,
}

impl Shape {
    /// Creates the layers of a model, with the adapter that it will have.
    ///
    /// # Errors
    /// [`TrainError::Adapter`] if the settings are invalid or match no layer.
    pub fn new(config: &LlamaConfig, method: Option<&dyn Method>) -> Result<Self, TrainError> {
        let quantizable = config.tensors().into_iter().filter(|tensor| tensor.quantizable);
        let quantizable: BTreeSet<_> = quantizable.map(|tensor| tensor.layer).collect();
        let model = Llama::shapes(config);
        let layers = model.layers().into_iter().map(|(path, layer)| {
            let ([out, width], kind) = (layer.shape(), layer.kind());
            let layer = Layer {
                kind,
                out,
                width,
                bias: layer.bias().is_some(),
                trains_bias: false,
                quantizable: quantizable.contains(&path),
                stored: config.is_stored_quantized(&path),
                shared: path == HEAD && config.tie_word_embeddings,
                plan: None,
                tensors: vec![],
                frozen_a: false,
                copied: 0,
            };
            (path, layer)
        });
        let mut layers: BTreeMap<String, Layer> = layers.collect();
        let mut shared_bytes = 0;
        if let Some(method) = method {
            let found: Vec<_> = layers.iter().map(|(path, l)| (path.as_str(), l.kind)).collect();
            let plans = method.plan(&found, HEAD)?;
            let mut sites = vec![];
            for ((path, layer), plan) in layers.iter_mut().zip(plans) {
                layer.trains_bias = layer.bias
                    && match method.bias() {
                        Bias::None => false,
                        Bias::All => true,
                        Bias::LoraOnly => matches!(plan, Some(LayerPlan::Update { .. })),
                    };
                if let Some(LayerPlan::Update { rank, alpha }) = plan {
                    let (kind, shape) = (layer.kind, [layer.out, layer.width]);
                    let site = Site { path, kind, shape, rank, alpha, ..Site::default() };
                    layer.tensors = method.tensors(&site);
                    layer.copied = method.copied(&site);
                    sites.push(site);
                }
                layer.plan = plan;
            }
            let shared = method.shared(&sites);
            shared_bytes = shared.iter().map(|tensor| 4 * tensor.shape[0] * tensor.shape[1]).sum();
        }
        let mut take = |path: &str| layers.remove(path).expect("every Llama has it");
        let (embedding, norm, head) = (take("model.embed_tokens"), take("model.norm"), take(HEAD));
        let mut blocks = vec![Block::new(); config.layers.len()];
        for (path, layer) in layers {
            let path = path.strip_prefix("model.layers.").expect("what is left is a layer's");
            let (index, path) = path.split_once('.').expect("a number comes first");
            blocks[index.parse::<usize>().expect("a number")].insert(path.to_owned(), layer);
        }
        let dropout = method.is_some_and(|method| method.dropout() > 0.0);
        let mut shape = Self { embedding, blocks, norm, head, shared_bytes, dora: false, dropout };
        let magnitude = |tensor: &UpdateTensor| tensor.role == Role::Magnitude;
        let dora = shape.layers().any(|layer| layer.tensors.iter().any(magnitude));
        shape.dora = dora;
        Ok(shape)
    }

    /// Sets whether A is frozen in all layers.
    pub fn freeze_a(&mut self, frozen: bool) {
        let others = [&mut self.embedding, &mut self.norm, &mut self.head];
        let all = self.blocks.iter_mut().flat_map(BTreeMap::values_mut).chain(others);
        all.for_each(|layer| layer.frozen_a = frozen);
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        let others = [&self.embedding, &self.norm, &self.head];
        self.blocks.iter().flat_map(BTreeMap::values).chain(others)
    }

    /// Returns the bytes of the frozen model without the embeddings: `weights/build.rs` of the
    /// llama crate packs the linear layers of the decoder, and keeps the rest in the model's dtype.
    pub fn base_bytes(
        &self,
        stored: Option<&dyn StorageFormat>,
        quantize: Option<&dyn StorageFormat>,
        size: usize,
    ) -> u64 {
        let bytes = |layer: &Layer| {
            let bias = if layer.bias { layer.out * size } else { 0 };
            let weight = match stored.filter(|_| layer.stored).or(quantize) {
                _ if layer.shared => 0,
                Some(format) if layer.quantizable => format.bytes([layer.out, layer.width]).total(),
                _ => layer.values() * size,
            };
            (weight + bias) as u64
        };
        let blocks = self.blocks.iter().flat_map(BTreeMap::values);
        blocks.chain([&self.norm, &self.head]).map(bytes).sum()
    }

    /// Returns the bytes of the adapter, in float32: the trained parameters, and what updates keep
    /// beside them. Biases are trained in place.
    pub fn adapter_bytes(&self) -> u64 {
        let of = |layer: &Layer| {
            let kept = layer.tensors.iter().filter(|tensor| !layer.is_trained(tensor));
            let kept: usize = kept.map(UpdateTensor::values).sum();
            let in_place = if layer.trains_bias { layer.out } else { 0 };
            layer.trained().iter().sum::<usize>() + kept - in_place
        };
        (4 * self.layers().map(of).sum::<usize>() + self.shared_bytes) as u64
    }

    /// Returns the lengths of all trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = usize> {
        self.layers().flat_map(|layer| layer.trained())
    }

    pub fn optimizer_bytes(&self, optimizer: &OptimizerConfig) -> u64 {
        self.trained().map(|len| optimizer.state_bytes(len) as u64).sum()
    }

    /// Returns the bytes of the gradients of some layers, in float32.
    pub fn gradient_bytes<'a>(&self, layers: impl IntoIterator<Item = &'a Layer>) -> u64 {
        let values = layers.into_iter().flat_map(|layer| layer.trained());
        4 * values.sum::<usize>() as u64
    }
}
