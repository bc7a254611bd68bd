//! Parameters of an adapter by role.

use crate::{
    layers::Layers,
    method::Role,
    parameters::{self, is_trained},
};
use burn::module::{ParamGroup, ParamId};

/// Parameters of an adapter by role, for an optimizer with a learning rate per group.
///
/// LoRA+ (arXiv:2402.12354) trains B (and magnitudes and biases) at a multiple of A's learning rate;
/// the paper uses 16. LoRA-FA freezes A ([`freeze_a`](crate::AdaptableExt::freeze_a)) and multiplies
/// B's gradient ([`lora_fa`](crate::AdaptableExt::lora_fa)).
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
    /// Parameters of embeddings: A and B, rows of tokens.
    pub embedding: Vec<ParamId>,
    /// Layers that are trained whole.
    pub saved: Vec<ParamId>,
    /// Biases that are trained.
    pub bias: Vec<ParamId>,
    /// Parameters of other roles.
    pub other: Vec<ParamId>,
}

impl ParamGroups {
    pub(crate) fn of(layers: &Layers<'_>, name: &str) -> Self {
        let mut groups = Self::default();
        for (_, layer) in layers {
            if let Some(adapter) = layer.adapters().get(name) {
                let parameters = parameters::list(&adapter.update);
                for tensor in adapter.tensors().iter().filter(|tensor| tensor.is_trained()) {
                    let of = parameters.iter().filter(|param| param.field == tensor.field);
                    groups.of_role(tensor.role).extend(of.map(|param| param.id));
                }
            }
            let trained = layer.bias().filter(|bias| is_trained(bias));
            groups.bias.extend(trained.map(|bias| bias.id));
        }
        groups
    }

    fn of_role(&mut self, role: Role) -> &mut Vec<ParamId> {
        match role {
            Role::A => &mut self.a,
            Role::B => &mut self.b,
            Role::Magnitude => &mut self.magnitude,
            Role::Embedding => &mut self.embedding,
            Role::Saved => &mut self.saved,
            Role::Other => &mut self.other,
        }
    }

    /// Returns the groups of LoRA+ with their learning rates: B, magnitudes and biases at `ratio · rate`,
    /// everything else at `rate`. They are disjoint.
    pub fn lora_plus(&self, rate: f64, ratio: f64) -> Vec<(ParamGroup, f64)> {
        let group = |parts: &[&[ParamId]]| ParamGroup::from_ids(parts.concat());
        vec![
            (group(&[&self.a, &self.embedding, &self.saved, &self.other]), rate),
            (group(&[&self.b, &self.magnitude, &self.bias]), rate * ratio),
        ]
    }
}
