//! Parameters of an adapter by role.

use crate::{
    layer::{LayerKind, is_trained},
    layers::Layers,
};
use burn::module::{ParamGroup, ParamId};

/// Parameters of an adapter by role, for an optimizer with a learning rate per group.
///
/// LoRA+ (arXiv:2402.12354) trains B (and magnitudes and biases) at a multiple of A's learning rate;
/// the paper uses 16. LoRA-FA freezes A: [`freeze_a`](crate::AdaptableExt::freeze_a).
///
/// ```
/// # use burn_lora_adapter::{AdaptableExt, Init, LoraConfig, doc};
/// # let model = doc::model();
/// let model = model.with_adapter(&LoraConfig::new(2, 4).targets(["linear"]))?;
/// let rates = model.param_groups("default")?.lora_plus(2e-4, 16.0);
/// assert_eq!(rates.len(), 2);
/// assert_eq!(rates[1].1, 3.2e-3); // B
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamGroups {
    /// A of linear layers.
    pub a: Vec<ParamId>,
    /// B of linear layers.
    pub b: Vec<ParamId>,
    /// DoRA's magnitudes.
    pub magnitude: Vec<ParamId>,
    /// A and B of embeddings.
    pub embedding: Vec<ParamId>,
    /// Layers that are trained whole.
    pub saved: Vec<ParamId>,
    /// Biases that are trained.
    pub bias: Vec<ParamId>,
}

impl ParamGroups {
    pub(crate) fn of(layers: &Layers<'_>, name: &str) -> Self {
        let mut groups = Self::default();
        for (_, layer) in layers {
            if let Some(lora) = layer.adapters().lora(name) {
                if layer.kind() == LayerKind::Embedding {
                    groups.embedding.extend([lora.lora_a.id, lora.lora_b.id]);
                } else {
                    groups.a.push(lora.lora_a.id);
                    groups.b.push(lora.lora_b.id);
                }
                groups.magnitude.extend(lora.magnitude.as_ref().map(|param| param.id));
            }
            if let Some(saved) = layer.adapters().saved(name) {
                groups.saved.push(saved.weight.id);
                groups.saved.extend(saved.bias.as_ref().map(|param| param.id));
            }
            let trained = layer.bias().filter(|bias| is_trained(bias));
            groups.bias.extend(trained.map(|bias| bias.id));
        }
        groups
    }

    /// Returns the groups of LoRA+ with their learning rates: A, embeddings and whole layers at `rate`; B,
    /// magnitudes and biases at `ratio · rate`. They are disjoint.
    pub fn lora_plus(&self, rate: f64, ratio: f64) -> Vec<(ParamGroup, f64)> {
        let group = |parts: [&[ParamId]; 3]| ParamGroup::from_ids(parts.concat());
        vec![
            (group([&self.a, &self.embedding, &self.saved]), rate),
            (group([&self.b, &self.magnitude, &self.bias]), rate * ratio),
        ]
    }
}
