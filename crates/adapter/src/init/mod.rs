//! Initialisation of an adapter's matrices.

pub(crate) mod eva;
pub(crate) mod linalg;
pub(crate) mod random;
pub(crate) mod residual;

use crate::error::AdapterError;
use burn_lora_quant::QuantConfig;

/// Initialisation of A `[rank, in]` and B `[out, rank]`.
///
/// PiSSA, OLoRA and LoftQ move a part of the weight into the adapter and change the base accordingly.
///
/// ```
/// use burn_lora_adapter::{Init, LoraConfig};
///
/// let lora = LoraConfig::new(16, 32).all_linear().init(Init::PissaNiter(4));
/// # assert!(lora.validate().is_ok());
/// assert_eq!("pissa_niter_4".parse::<Init>(), Ok(Init::PissaNiter(4)));
/// ```
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Init {
    /// A from U(-1/sqrt(in), 1/sqrt(in)), B zero: the layer starts as its base. On an embedding A is
    /// zero and B from N(0, 1).
    #[default]
    Kaiming,
    /// A and B random, for tests: the layer does not start as its base. PEFT's `false`.
    Random,
    /// A from N(0, 1/rank²), B zero.
    Gaussian,
    /// OLoRA: first columns and rows of the weight's QR decomposition (arXiv:2406.01775).
    Olora,
    /// PiSSA: largest singular values of the weight (arXiv:2404.02948), computed exactly: minutes for a
    /// large weight.
    Pissa,
    /// PiSSA by subspace iteration, with this number of rounds (4 to 16 are usual): seconds.
    PissaNiter(usize),
    /// LoftQ: compensates for the quantization error by alternately quantizing and decomposing the
    /// residual (arXiv:2310.08659). A dense base becomes a packed one.
    Loftq {
        /// Number of rounds; PEFT's default is 1.
        iterations: usize,
        /// Quantization of the base.
        config: QuantConfig,
    },
    /// EVA: A from the principal directions of the layer's inputs (arXiv:2410.07170), which the caller
    /// collects ([`InputStats`](crate::InputStats)), B zero. Ranks move to where they explain most.
    Eva {
        /// Limit of a layer's rank, as a multiple of the configured one; 1 leaves ranks unchanged.
        rho: f64,
    },
    /// A and B from orthogonal subspaces, so that their product is zero; for even ranks.
    Orthogonal,
}

/// Limit of the rounds: more change nothing, and files of other programs may ask for any number.
const MOST_ROUNDS: usize = 100;

impl Init {
    /// PEFT's name of the initialisation.
    pub fn name(&self) -> String {
        match self {
            Self::Kaiming => "true".into(),
            Self::Random => "false".into(),
            Self::Gaussian => "gaussian".into(),
            Self::Olora => "olora".into(),
            Self::Pissa => "pissa".into(),
            Self::PissaNiter(rounds) => format!("pissa_niter_{rounds}"),
            Self::Loftq { .. } => "loftq".into(),
            Self::Eva { .. } => "eva".into(),
            Self::Orthogonal => "orthogonal".into(),
        }
    }

    /// Returns `true` if the initialisation is subtracted from the base, so that base and adapter together
    /// are the original weight.
    pub fn is_residual(&self) -> bool {
        matches!(self, Self::Olora | Self::Pissa | Self::PissaNiter(_))
    }

    pub(crate) fn validate(&self) -> Result<(), AdapterError> {
        let error = |found: String, reason: &str| {
            Err(AdapterError::Config {
                config: "LoraConfig",
                field: "init_lora_weights",
                found,
                reason: reason.into(),
            })
        };
        match self {
            Self::PissaNiter(rounds) if *rounds > MOST_ROUNDS => {
                error(format!("pissa_niter_{rounds}"), "at most 100 rounds (4 to 16 are usual)")
            }
            Self::Loftq { iterations, .. } if !(1..=MOST_ROUNDS).contains(iterations) => {
                error(format!("loftq with {iterations} rounds"), "1 to 100 (up to 5 are usual)")
            }
            Self::Loftq { config, .. } => Ok(config.validate()?),
            Self::Eva { rho } if rho.is_nan() || *rho < 1.0 => {
                error(format!("eva with rho {rho}"), "rho is at least 1")
            }
            _ => Ok(()),
        }
    }
}

/// Advice, in messages, to convert an adapter that was initialised from the weight to a plain one.
pub(crate) const CONVERT: &str = "convert it in Python, where it was trained, by `save_pretrained(.., \
                                  path_initial_model_for_weight_conversion=..)`";

impl std::str::FromStr for Init {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let lower = name.to_lowercase();
        if let Some(rounds) = lower.strip_prefix("pissa_niter_") {
            let rounds = rounds.parse().map_err(|_| format!("`{name}`: no number of rounds"))?;
            return Ok(Self::PissaNiter(rounds));
        }
        Ok(match lower.as_str() {
            "true" => Self::Kaiming,
            "false" => Self::Random,
            "gaussian" => Self::Gaussian,
            "olora" => Self::Olora,
            "pissa" => Self::Pissa,
            "loftq" => Self::Loftq { iterations: 1, config: QuantConfig::nf4() },
            "eva" => Self::Eva { rho: 2.0 },
            "orthogonal" => Self::Orthogonal,
            // Initialised from data or gradients, which are not there when a file is read.
            "corda" | "lora_ga" => {
                return Err(format!(
                    "init_lora_weights is `{name}`, which changes the base in a way that cannot be \
                     repeated: {CONVERT}"
                ));
            }
            _ => {
                let name = burn_lora_io::escaped(name);
                return Err(format!(
                    "init_lora_weights is `{name}`: true, false, gaussian, olora, pissa, \
                     pissa_niter_N, loftq, eva and orthogonal are supported"
                ));
            }
        })
    }
}
