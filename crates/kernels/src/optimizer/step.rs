//! A step of Adam.

#[cfg(feature = "cubecl")]
use cubecl::prelude::*;

/// Coefficients of a step of Adam: `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
/// `p ← keep · p - size · m / (root · sqrt(v) + eps)`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "cubecl", derive(cubecl::CubeType, cubecl::CubeLaunch))]
pub struct Step {
    /// β₁.
    pub beta1: f32,
    /// `1 - β₁`, separate because float32 could not compute it exactly from β₁.
    pub rest1: f32,
    /// β₂.
    pub beta2: f32,
    /// `1 - β₂`.
    pub rest2: f32,
    /// Factor of the parameter, less than 1 by its weight decay.
    pub keep: f32,
    /// Learning rate, with the bias correction of `m`.
    pub size: f32,
    /// Bias correction of the root of `v`.
    pub root: f32,
    /// Summand of the denominator.
    pub eps: f32,
}

/// Returns the new parameter, `m` and `v`: the arithmetic of every backend.
#[cfg_attr(feature = "cubecl", cubecl::cube)]
pub(super) fn advance(step: &Step, param: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let m = step.beta1 * m + step.rest1 * grad;
    let v = step.beta2 * v + step.rest2 * grad * grad;
    let param = step.keep * param - step.size * m / (step.root * v.sqrt() + step.eps);
    (param, m, v)
}

#[cfg(feature = "cubecl")]
impl Step {
    /// Converts the coefficients into a kernel argument.
    pub(super) fn launch_arg(self) -> StepLaunch {
        let Self { beta1, rest1, beta2, rest2, keep, size, root, eps } = self;
        StepLaunch::new(beta1, rest1, beta2, rest2, keep, size, root, eps)
    }
}
