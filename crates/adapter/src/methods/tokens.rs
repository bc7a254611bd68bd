//! Trainable tokens: some rows of an embedding are trained, and those of a head that shares its weight.

use crate::{
    base::dense_product,
    error::AdapterError,
    frozen::{FrozenLayer, LayerKind},
    init::random,
    lookup::look_up,
    method::{Method, Origin, Role, Site, UpdateTensor},
    target::{EMBEDDING, TargetConfig, Targets, check_tokens},
    targets::Matcher,
    update::{BoxedUpdate, LinearInput, TokenInput, Update},
};
use burn::{
    module::{Module, Param},
    tensor::{Bool, DType, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{ops::Range, sync::Arc};

/// New rows that an adapter's settings alone can ask for.
const MOST_NEW: usize = 1 << 16;

/// Settings of trainable tokens: the rows of some tokens take the place of an embedding's own, and are
/// trained. A head with tied embeddings follows.
///
/// The fields have PEFT's names and defaults. Beside LoRA:
/// [`LoraConfig::trainable_tokens`](crate::LoraConfig::trainable_tokens).
///
/// ```
/// use burn_lora_adapter::{Method, TrainableTokensConfig};
///
/// let tokens = TrainableTokensConfig { token_indices: vec![128_256, 128_257], ..Default::default() };
/// assert!(tokens.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainableTokensConfig {
    /// Ids of the tokens.
    pub token_indices: Vec<usize>,
    /// Embeddings (or heads) whose rows are trained; `embed_tokens` without.
    pub target_modules: Option<Targets>,
    /// Whether rows start as the embedding's own; `false` is for tests.
    pub init_weights: bool,
    /// Name of the base model, for the files.
    pub base_model_name_or_path: Option<String>,
    /// Task, for the files.
    pub task_type: Option<String>,
}

impl Default for TrainableTokensConfig {
    fn default() -> Self {
        Self {
            token_indices: vec![],
            target_modules: None,
            init_weights: true,
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".into()),
        }
    }
}

/// Trained rows of some tokens.
#[derive(Module, Debug)]
pub struct TrainableTokens {
    /// Rows of the tokens, `[tokens, hidden]`, in place of the frozen ones.
    pub trainable_tokens_delta: Param<Tensor<2>>,
    /// Frozen rows of the tokens, `[tokens, hidden]`.
    trainable_tokens_original: Param<Tensor<2>>,
    /// Ids of the tokens.
    indices: Tensor<1, Int>,
    /// Position of each token of the vocabulary among the trained ones; their number if it is none.
    positions: Tensor<1, Int>,
    #[module(skip)]
    tokens: Arc<[usize]>,
    #[module(skip)]
    embedding: bool,
}

impl TrainableTokens {
    /// Parameters of the rows, under a name of files.
    pub(crate) fn tensors(key: &str, tokens: usize, site: &Site<'_>) -> Vec<UpdateTensor> {
        let hidden = hidden(site.kind, site.shape);
        let shape = [tokens, hidden];
        vec![
            UpdateTensor::new("trainable_tokens_delta", key, &shape, Role::Embedding),
            UpdateTensor::derived("trainable_tokens_original", &shape),
        ]
    }

    /// Creates rows that start as the frozen ones.
    pub(crate) fn new(layer: &dyn FrozenLayer, tokens: &[usize]) -> Self {
        let device = layer.device();
        let ints = |values: Vec<i32>| {
            let len = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [len]), &device)
        };
        let mut positions = vec![tokens.len() as i32; vocabulary(layer.kind(), layer.shape())];
        for (position, token) in tokens.iter().enumerate() {
            positions[*token] = position as i32;
        }
        let indices = ints(tokens.iter().map(|token| *token as i32).collect());
        let rows = rows(layer.file_layout(layer.weight()), &indices);
        let start = rows.clone() * 1.0;
        let start = if device.is_autodiff() { start.autodiff() } else { start };
        Self {
            trainable_tokens_delta: Param::from_tensor(start),
            trainable_tokens_original: Param::from_tensor(rows).set_require_grad(false),
            indices,
            positions: ints(positions),
            tokens: tokens.into(),
            embedding: layer.kind() == LayerKind::Embedding,
        }
    }

    /// Checks that the tokens are in the vocabulary of a layer. An adapter of a file may be of a larger
    /// one.
    pub(crate) fn check(site: &Site<'_>, tokens: &[usize]) -> Result<(), AdapterError> {
        let (layer, vocabulary) = (site.path.to_owned(), vocabulary(site.kind, site.shape));
        match tokens.iter().max().filter(|token| **token >= vocabulary) {
            None => Ok(()),
            // Nothing but the settings says so: no reason to allocate without bounds.
            Some(last) if site.origin != Origin::New && *last < vocabulary + MOST_NEW => {
                Err(AdapterError::Vocabulary {
                    path: "adapter_config.json".into(),
                    tensor: "trainable_token_indices".into(),
                    found: last + 1,
                    expected: vocabulary,
                })
            }
            Some(token) => Err(AdapterError::Layer {
                layer,
                reason: format!("it has no token {token}: its vocabulary has {vocabulary} tokens"),
            }),
        }
    }

    /// Returns `true` if the rows of all these tokens are trained.
    pub(crate) fn covers(&self, mut tokens: Range<usize>) -> bool {
        tokens.all(|token| self.tokens.contains(&token))
    }

    /// Mask of the trained tokens in the vocabulary.
    fn is_trained(&self, positions: Tensor<1, Int>) -> Tensor<1, Bool> {
        positions.lower_elem(self.tokens.len() as i64)
    }
}

fn hidden(kind: LayerKind, [out, width]: [usize; 2]) -> usize {
    if kind == LayerKind::Embedding { out } else { width }
}

fn vocabulary(kind: LayerKind, [out, width]: [usize; 2]) -> usize {
    if kind == LayerKind::Embedding { width } else { out }
}

/// Rows of a weight in the layout of files.
fn rows(weight: Tensor<2>, indices: &Tensor<1, Int>) -> Tensor<2> {
    weight.select(0, indices.clone())
}

impl Update for TrainableTokens {
    /// Output of a head: the columns of the tokens are products with their rows.
    fn forward<const D: usize>(&self, y: Tensor<D>, input: LinearInput<'_, D>) -> Tensor<D> {
        let own = dense_product(input.x, self.trainable_tokens_delta.val());
        let mask = self.is_trained(self.positions.clone());
        let mut shape = [1; D];
        shape[D - 1] = mask.dims()[0];
        let mask = mask.reshape(shape).expand(y.shape());
        let y = y.mask_fill(mask, 0.0);
        y.select_assign(D - 1, self.indices.clone(), own, IndexingUpdateOp::Add)
    }

    fn look_up(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3> {
        let ([batch, length], vocabulary) = (input.tokens.dims(), self.positions.dims()[0]);
        let tokens = input.tokens.reshape([batch * length]).clamp(0, vocabulary as i64 - 1);
        let positions = self.positions.clone().select(0, tokens);
        let mask = self.is_trained(positions.clone()).reshape([batch, length, 1]);
        let positions = positions.clamp(0, self.tokens.len() as i64 - 1).reshape([batch, length]);
        let own = look_up(self.trainable_tokens_delta.val(), positions).cast(y.dtype());
        let mask = mask.expand(y.shape());
        y.mask_where(mask, own)
    }

    fn delta(&self, dtype: FloatDType) -> Option<Tensor<2>> {
        let [rows, original] = [&self.trainable_tokens_delta, &self.trainable_tokens_original]
            .map(|param| param.val().inner().cast(dtype));
        let shape = [self.positions.dims()[0], rows.dims()[1]];
        let zeros = Tensor::zeros(shape, (&rows.device(), DType::from(dtype)));
        let indices = self.indices.clone();
        let change = zeros.select_assign(0, indices, rows - original, IndexingUpdateOp::Add);
        Some(if self.embedding { change.transpose() } else { change })
    }

    fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>) {
        let weight = if self.embedding { weight().transpose() } else { weight() };
        let (original, indices) = (self.trainable_tokens_original.clone(), &self.indices);
        self.trainable_tokens_original = original.map(|_| rows(weight, indices));
    }

    fn tied(&self, layer: &dyn FrozenLayer) -> Option<BoxedUpdate> {
        let embedding = layer.kind() == LayerKind::Embedding;
        (layer.kind() != LayerKind::Vector)
            .then(|| BoxedUpdate::new(Self { embedding, ..self.clone() }))
    }

    fn conflict(&self, other: &BoxedUpdate) -> Option<String> {
        let other = other.downcast_ref::<Self>()?;
        let both = self.tokens.iter().find(|token| other.tokens.contains(token))?;
        Some(format!("both train token {both}: select one of them"))
    }
}

impl Method for TrainableTokensConfig {
    fn peft_type(&self) -> &'static str {
        "TRAINABLE_TOKENS"
    }

    fn targets(&self) -> TargetConfig {
        let targets = self.target_modules.clone().unwrap_or_else(|| Targets::from([EMBEDDING]));
        TargetConfig { targets: Some(targets), ..TargetConfig::new("TrainableTokensConfig") }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).expect("settings are plain values")
    }

    fn validate(&self) -> Result<(), AdapterError> {
        let targets = self.targets();
        check_tokens(targets.config, "token_indices", &self.token_indices)?;
        Matcher::new(&targets).map(drop)
    }

    fn tensors(&self, site: &Site<'_>) -> Vec<UpdateTensor> {
        TrainableTokens::tensors("trainable_tokens_delta", self.token_indices.len(), site)
    }

    fn saves_tied(&self) -> bool {
        true
    }

    fn check(&self, layers: &[(Site<'_>, &dyn FrozenLayer)]) -> Result<(), AdapterError> {
        layers.iter().try_for_each(|(site, _)| TrainableTokens::check(site, &self.token_indices))
    }

    fn attach(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
        _shared: &[Param<Tensor<2>>],
    ) -> Result<BoxedUpdate, AdapterError> {
        let mut tokens = TrainableTokens::new(layer, &self.token_indices);
        if !self.init_weights && site.origin == Origin::New {
            let shape = tokens.trainable_tokens_delta.shape().dims();
            let mut rng = random::generator(0, site.path);
            let values = random::gaussian(shape, 1.0, layer, &mut rng);
            tokens.trainable_tokens_delta = tokens.trainable_tokens_delta.map(|_| values);
        }
        Ok(BoxedUpdate::new(tokens))
    }
}
