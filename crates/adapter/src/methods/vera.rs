//! VeRA: random matrices that all layers share, and two trained vectors at each layer.

use super::mersenne::Mersenne;
use crate::{
    error::AdapterError,
    frozen::{FrozenLayer, LayerKind},
    init::{linalg::tensor, random},
    method::{Method, Origin, Role, SharedTensor, Site, UpdateTensor},
    target::{Bias, OneOrMany, TargetConfig, Targets, check_rank},
    targets::Matcher,
    update::{BoxedUpdate, LowRank, Update},
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of VeRA (arXiv:2310.11454): `x -> b ∘ (B · (d ∘ (A · x)))`, where A and B are random, frozen,
/// and one pair for all layers, and the vectors `d` and `b` are trained.
///
/// The fields have PEFT's names and defaults. A and B are drawn from the key as PEFT draws them.
///
/// ```
/// use burn_lora_adapter::{AdaptableExt, Targets, VeraConfig};
/// # use burn_lora_adapter::doc;
/// # let mut model = doc::model();
/// let vera = VeraConfig { r: 8, target_modules: Some(Targets::from(["linear"])), ..Default::default() };
/// model.add_adapter("default", &vera)?;
/// assert_eq!(model.summary().trainable, 8 + 16);
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VeraConfig {
    /// Rank of A and B.
    pub r: usize,
    /// Linear layers to adapt.
    pub target_modules: Option<Targets>,
    /// Layers to exclude.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    /// Key of A and B.
    pub projection_prng_key: u64,
    /// Whether A and B are in files; without, they are drawn from the key again.
    pub save_projection: bool,
    /// Probability that an input of an update is zeroed in training, in [0, 1).
    pub vera_dropout: f64,
    /// First value of `d`; `b` starts at zero.
    pub d_initial: f64,
    /// Biases of the base to train.
    #[serde(with = "bias")]
    pub bias: Bias,
    /// Layers of which a whole copy is trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Whether the update starts at zero; `false` is for tests.
    pub init_weights: bool,
    /// Decoder layers to adapt, by index; only with targets by name.
    #[serde(deserialize_with = "many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the lists that `layers_to_transform` indexes.
    #[serde(deserialize_with = "many")]
    pub layers_pattern: Option<Vec<String>>,
    /// Name of the base model, for the files.
    pub base_model_name_or_path: Option<String>,
    /// Task, for the files.
    pub task_type: Option<String>,
}

impl Default for VeraConfig {
    /// Returns PEFT's defaults: rank 256, no targets yet.
    fn default() -> Self {
        Self {
            r: 256,
            target_modules: None,
            exclude_modules: None,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            bias: Bias::None,
            modules_to_save: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".into()),
        }
    }
}

/// Reads one item as a list of one.
fn many<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<OneOrMany<T>>::deserialize(deserializer)?.map(OneOrMany::many))
}

/// [`Bias`] by the names of VeRA's settings.
mod bias {
    use crate::target::Bias;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Name {
        None,
        All,
        VeraOnly,
    }

    pub fn serialize<S: Serializer>(bias: &Bias, serializer: S) -> Result<S::Ok, S::Error> {
        match bias {
            Bias::None => Name::None,
            Bias::All => Name::All,
            Bias::LoraOnly => Name::VeraOnly,
        }
        .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bias, D::Error> {
        Ok(match Name::deserialize(deserializer)? {
            Name::None => Bias::None,
            Name::All => Bias::All,
            Name::VeraOnly => Bias::LoraOnly,
        })
    }
}

/// VeRA's update of one layer.
#[derive(Module, Debug)]
pub struct VeraAdapter {
    /// `d`, `[rank]`.
    pub vera_lambda_d: Param<Tensor<1>>,
    /// `b`, `[out]`.
    pub vera_lambda_b: Param<Tensor<1>>,
    /// A of all layers, `[rank, largest in]`; not trained.
    pub vera_a: Param<Tensor<2>>,
    /// B of all layers, `[largest out, rank]`; not trained.
    pub vera_b: Param<Tensor<2>>,
    #[module(skip)]
    shape: [usize; 2],
}

impl Update for VeraAdapter {
    /// The layer's part of A with its rows scaled by `d`, and of B with its rows scaled by `b`.
    fn low_rank(&self) -> Option<LowRank> {
        let [out, width] = self.shape;
        let rows = |lambda: &Param<Tensor<1>>| lambda.val().unsqueeze_dim::<2>(1);
        Some(LowRank {
            a: self.vera_a.val().narrow(1, 0, width) * rows(&self.vera_lambda_d),
            b: self.vera_b.val().narrow(0, 0, out) * rows(&self.vera_lambda_b),
            scaling: 1.0,
        })
    }
}

impl VeraConfig {
    fn error(field: &'static str, found: String, reason: &str) -> AdapterError {
        AdapterError::Config { config: "VeraConfig", field, found, reason: reason.into() }
    }
}

impl Method for VeraConfig {
    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn targets(&self) -> TargetConfig {
        TargetConfig {
            targets: self.target_modules.clone(),
            exclude: self.exclude_modules.clone(),
            layers: self.layers_to_transform.clone().filter(|layers| !layers.is_empty()),
            layers_pattern: self.layers_pattern.clone().unwrap_or_default(),
            modules_to_save: self.modules_to_save.clone().unwrap_or_default(),
            rank: self.r,
            ..TargetConfig::new("VeraConfig")
        }
    }

    fn settings(&self) -> Value {
        let mut settings = serde_json::to_value(self).expect("settings are plain values");
        settings["fan_in_fan_out"] = false.into();
        settings
    }

    fn validate(&self) -> Result<(), AdapterError> {
        check_rank("VeraConfig", "r", self.r, "256 is usual")?;
        if !(0.0..1.0).contains(&self.vera_dropout) {
            let found = self.vera_dropout.to_string();
            return Err(Self::error("vera_dropout", found, "it has to be in [0, 1)"));
        }
        if !self.d_initial.is_finite() {
            return Err(Self::error("d_initial", self.d_initial.to_string(), "it is no number"));
        }
        Matcher::new(&self.targets()).map(drop)
    }

    fn dropout(&self) -> f64 {
        self.vera_dropout
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn tensors(&self, site: &Site<'_>) -> Vec<UpdateTensor> {
        let tensor = |name, len| UpdateTensor::new(name, name, &[len], Role::Other);
        vec![tensor("vera_lambda_d", site.rank), tensor("vera_lambda_b", site.shape[0])]
    }

    /// The layer's parts of A and B.
    fn copied(&self, site: &Site<'_>) -> usize {
        site.rank * (site.shape[0] + site.shape[1])
    }

    fn shared(&self, sites: &[Site<'_>]) -> Vec<SharedTensor> {
        let most = |side: usize| sites.iter().map(|site| site.shape[side]).max().unwrap_or(0);
        let saved = self.save_projection;
        vec![
            SharedTensor { field: "vera_a", key: "vera_A", shape: [self.r, most(1)], saved },
            SharedTensor { field: "vera_b", key: "vera_B", shape: [most(0), self.r], saved },
        ]
    }

    /// Draws from U(-sqrt(6 / columns), sqrt(6 / columns)), by PyTorch's generator.
    fn shared_values(&self, tensors: &[SharedTensor]) -> Vec<Vec<f32>> {
        let mut random = Mersenne::new(self.projection_prng_key);
        let draw = |tensor: &SharedTensor| {
            let [rows, columns] = tensor.shape;
            let bound = 3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt());
            (0..rows * columns).map(|_| random.uniform(-bound as f32, bound as f32)).collect()
        };
        tensors.iter().map(draw).collect()
    }

    fn check(&self, layers: &[(Site<'_>, &dyn FrozenLayer)]) -> Result<(), AdapterError> {
        match layers.iter().find(|(site, _)| site.kind != LayerKind::Linear) {
            None => Ok(()),
            Some((site, _)) => Err(AdapterError::Layer {
                layer: site.path.to_owned(),
                reason: "VeRA adapts linear layers only: exclude it".into(),
            }),
        }
    }

    fn attach(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
        shared: &[Param<Tensor<2>>],
    ) -> Result<BoxedUpdate, AdapterError> {
        let (out, device) = (site.shape[0], layer.device());
        let [d, b] = if self.init_weights || site.origin != Origin::New {
            [vec![self.d_initial as f32; self.r], vec![0.0; out]]
        } else {
            let mut rng = random::generator(self.projection_prng_key, site.path);
            [StandardNormal.sample_iter(&mut rng).take(self.r).collect(), vec![1.0; out]]
        };
        Ok(BoxedUpdate::new(VeraAdapter {
            vera_lambda_d: Param::from_tensor(tensor(d, [self.r], &device)),
            vera_lambda_b: Param::from_tensor(tensor(b, [out], &device)),
            vera_a: shared[0].clone(),
            vera_b: shared[1].clone(),
            shape: site.shape,
        }))
    }
}
