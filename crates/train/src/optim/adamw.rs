//! AdamW, with moments in float32 or in 8 bits, in the arithmetic of each reference.

use super::optimizer::{Optimizer, State, Update, all_taken, take};
use crate::{TrainError, params::own};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_kernels::{
    dynamic::{self, BLOCK, CODES},
    optimizer::{self, AdamWCoded, Step, adamw, adamw_coded},
    persistent, persistent_int,
};
use std::{collections::BTreeMap, path::Path};

/// Parameters with fewer elements keep their moments in float32, as in bitsandbytes.
const CODED_FROM: usize = 4096;

/// Whose arithmetic a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    PyTorch,
    /// With moments in 8 bits; the decay comes after the step.
    BitsAndBytes,
    /// That of transformers' former AdamW: the decay comes after the step, and eps is added to the
    /// root before the correction of its bias.
    Transformers,
}

/// AdamW over vectors in float32.
pub(super) struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    arithmetic: Arithmetic,
    /// Steps done.
    step: usize,
    moments: BTreeMap<String, Moments>,
    /// Values of the codes, on the device.
    maps: Option<Tensor<1>>,
}

/// Averages of a parameter's gradient and of its square: `m` and `v`.
enum Moments {
    Float([Tensor<1>; 2]),
    /// Codes, 4 per word, and the absmax of each block: of `m`, then of `v`.
    Coded(Tensor<1, Int>, Tensor<1>),
}

/// A parameter to update, and its place in the call.
type Placed<'a> = (usize, Update<'a>);

impl AdamW {
    pub fn new(beta1: f64, beta2: f64, eps: f64, arithmetic: Arithmetic) -> Self {
        Self { beta1, beta2, eps, arithmetic, step: 0, moments: BTreeMap::new(), maps: None }
    }

    /// Returns the bytes of both moments of a parameter of `len` elements: see
    /// [`zeros`](Self::zeros).
    pub fn state_bytes(len: usize, coded: bool) -> usize {
        if coded && len >= CODED_FROM {
            4 * 2 * (len.div_ceil(CODES) + len.div_ceil(BLOCK))
        } else {
            4 * 2 * len
        }
    }

    /// Returns `true` if the moments of a parameter of `len` elements are in 8 bits.
    fn is_coded(&self, len: usize) -> bool {
        self.arithmetic == Arithmetic::BitsAndBytes && len >= CODED_FROM
    }

    fn zeros(&self, len: usize, device: &Device) -> Moments {
        let zeros = |len| persistent(Tensor::zeros([len], (device, DType::F32)));
        if self.is_coded(len) {
            let codes = Tensor::zeros([2 * len.div_ceil(CODES)], (device, DType::U32));
            Moments::Coded(persistent_int(codes), zeros(2 * len.div_ceil(BLOCK)))
        } else {
            Moments::Float([zeros(len), zeros(len)])
        }
    }

    /// Steps over parameters with moments in float32; returns the new values and moments.
    fn float(
        &mut self,
        group: Vec<Placed<'_>>,
        factor: &Tensor<1>,
        step: Step,
    ) -> Vec<(Tensor<1>, Moments)> {
        let vectors = group.into_iter().map(|(_, Update { path, param, grad, .. })| {
            match self.taken(path, &param) {
                Moments::Float(moments) => optimizer::AdamW { param, grad, moments },
                Moments::Coded(..) => unreachable!("`is_coded` is of the length"),
            }
        });
        let updated = adamw(vectors.collect(), factor, step).into_iter();
        updated.map(|(new, moments)| (new, Moments::Float(moments))).collect()
    }

    /// [`float`](Self::float) for moments in 8 bits.
    fn coded(
        &mut self,
        group: Vec<Placed<'_>>,
        factor: &Tensor<1>,
        step: Step,
    ) -> Vec<(Tensor<1>, Moments)> {
        let maps = || Tensor::from_data(dynamic::maps().as_slice(), (&factor.device(), DType::F32));
        let maps = self.maps.get_or_insert_with(maps).clone();
        let vectors = group.into_iter().map(|(_, Update { path, param, grad, .. })| {
            match self.taken(path, &param) {
                Moments::Coded(codes, absmax) => AdamWCoded { param, grad, codes, absmax },
                Moments::Float(_) => unreachable!("`is_coded` is of the length"),
            }
        });
        let updated = adamw_coded(vectors.collect(), factor, &maps, step).into_iter();
        updated.map(|(new, (codes, absmax))| (new, Moments::Coded(codes, absmax))).collect()
    }

    /// Takes the moments of a parameter out, or creates them.
    fn taken(&mut self, path: &str, param: &Tensor<1>) -> Moments {
        let moments = self.moments.remove(path);
        moments.unwrap_or_else(|| self.zeros(param.dims()[0], &param.device()))
    }

    /// Returns the scalars of this step.
    fn numbers(&self, rate: f64, decay: f64) -> Step {
        let [correction1, correction2] =
            [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(self.step as i32));
        let (keep, size, root) =
            (1.0 - rate * decay, rate / correction1, correction2.sqrt().recip());
        // A decay after the step: `(p - x) · keep` for PyTorch's `p · keep - x`.
        let (size, root) = match self.arithmetic {
            Arithmetic::PyTorch => (size, root),
            Arithmetic::BitsAndBytes => (size * keep, root),
            Arithmetic::Transformers => (size * keep * correction2.sqrt(), 1.0),
        };
        Step {
            beta1: self.beta1 as f32,
            rest1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            keep: keep as f32,
            size: size as f32,
            root: root as f32,
            eps: self.eps as f32,
        }
    }
}

impl Optimizer for AdamW {
    fn begin(&mut self) {
        self.step += 1;
    }

    fn update(&mut self, updates: Vec<Update<'_>>, factor: &Tensor<1>) -> Vec<Tensor<1>> {
        // A call for each rate, decay and form of the moments, with the places of its parameters.
        let mut groups: Vec<(_, Vec<Placed<'_>>)> = vec![];
        let mut new = vec![None; updates.len()];
        for (place, update) in updates.into_iter().enumerate() {
            let key = (update.rate, update.decay, self.is_coded(update.param.dims()[0]));
            match groups.iter_mut().find(|(found, _)| *found == key) {
                Some((_, group)) => group.push((place, update)),
                None => groups.push((key, vec![(place, update)])),
            }
        }
        for ((rate, decay, coded), group) in groups {
            let step = self.numbers(rate, decay);
            let names: Vec<_> = group.iter().map(|(place, update)| (*place, update.path)).collect();
            let updated = if coded {
                self.coded(group, factor, step)
            } else {
                self.float(group, factor, step)
            };
            for ((place, path), (param, moments)) in names.into_iter().zip(updated) {
                new[place] = Some(param);
                self.moments.insert(path.to_owned(), moments);
            }
        }
        new.into_iter().map(|new| new.expect("each is in one group")).collect()
    }

    fn state(&self) -> State {
        let parts = |moments: &Moments| -> [(&str, TensorData); 2] {
            match moments {
                Moments::Float([m, v]) => [("m", own(m.to_data())), ("v", own(v.to_data()))],
                Moments::Coded(codes, absmax) => {
                    [("codes", own(codes.to_data())), ("absmax", own(absmax.to_data()))]
                }
            }
        };
        let all = self.moments.iter().flat_map(|(path, moments)| {
            parts(moments).map(|(name, data)| (format!("{path}.{name}"), data))
        });
        all.collect()
    }

    fn load(
        &mut self,
        step: usize,
        mut state: State,
        lengths: &BTreeMap<String, usize>,
        file: &Path,
        device: &Device,
    ) -> Result<(), TrainError> {
        for (path, &len) in lengths {
            let mut float = |name: &str, len| {
                let full = format!("{path}.{name}");
                let data = take(&mut state, &full, len, DType::F32, file)?;
                // `v` is under a root; an absmax is not negative.
                if name != "m" && data.iter::<f32>().any(|value| value < 0.0) {
                    let reason = format!("`{full}` has values below 0: it was damaged; remove it");
                    return Err(TrainError::format(file, reason));
                }
                Ok(persistent(Tensor::from_data(data, (device, DType::F32))))
            };
            let moments = if self.is_coded(len) {
                let absmax = float("absmax", 2 * len.div_ceil(BLOCK))?;
                let (name, words) = (format!("{path}.codes"), 2 * len.div_ceil(CODES));
                let codes = take(&mut state, &name, words, DType::U32, file)?;
                let codes = Tensor::from_data(codes, (device, DType::U32));
                Moments::Coded(persistent_int(codes), absmax)
            } else {
                Moments::Float([float("m", len)?, float("v", len)?])
            };
            self.moments.insert(path.clone(), moments);
        }
        self.step = step;
        all_taken(&state, file)
    }
}
