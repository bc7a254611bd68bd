//! AdamW.

use super::{State, Update, vector};
use burn::tensor::{Device, Tensor};
use std::collections::BTreeMap;

/// AdamW over vectors in float32.
pub(crate) struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    /// Steps done.
    step: i32,
    /// The averages of the gradient and of its square, by parameter.
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    pub fn new(beta1: f64, beta2: f64, eps: f64) -> Self {
        Self { beta1, beta2, eps, step: 0, moments: BTreeMap::new() }
    }

    /// Begins a step: each parameter is updated once in it.
    pub fn begin(&mut self) {
        self.step += 1;
    }

    /// The parameter's new value.
    pub fn update(&mut self, update: Update<'_>) -> Tensor<1> {
        let Update { path, param, grad, factor, rate, decay } = update;
        let grad = grad * factor;
        let [m, v] = self.moments.remove(path).unwrap_or_else(|| {
            let zeros = grad.zeros_like();
            [zeros.clone(), zeros]
        });
        let m = m * self.beta1 + grad.clone() * (1.0 - self.beta1);
        let v = v * self.beta2 + grad.clone() * grad * (1.0 - self.beta2);
        let correction1 = 1.0 - self.beta1.powi(self.step);
        let correction2 = 1.0 - self.beta2.powi(self.step);
        let root = v.clone().sqrt() / correction2.sqrt() + self.eps;
        let new = param * (1.0 - rate * decay) - m.clone() / root * (rate / correction1);
        self.moments.insert(path.to_owned(), [m, v]);
        new
    }

    /// All that a checkpoint needs, beside the number of steps.
    pub fn state(&self) -> State {
        let named = self.moments.iter().flat_map(|(path, moments)| {
            let names = ["m", "v"].map(|name| format!("{path}.{name}"));
            names.into_iter().zip(moments.clone().map(Tensor::into_data))
        });
        named.collect()
    }

    /// Goes on from a checkpoint after `step` steps.
    pub fn load(&mut self, step: usize, mut state: State, device: &Device) {
        self.step = step as i32;
        let paths: Vec<_> =
            state.keys().filter_map(|name| name.strip_suffix(".m")).map(str::to_owned).collect();
        for path in paths {
            let moments =
                ["m", "v"].map(|name| vector(&mut state, &format!("{path}.{name}"), device));
            if let [Some(m), Some(v)] = moments {
                self.moments.insert(path, [m, v]);
            }
        }
    }
}
