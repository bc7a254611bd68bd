//! One step of Adam.

#[cfg(feature = "cubecl")]
use cubecl::prelude::*;

/// The numbers of one step of Adam: `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
/// `p ← keep · p - size · m / (root · sqrt(v) + eps)`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "cubecl", derive(cubecl::CubeType, cubecl::CubeLaunch))]
pub struct Step {
    /// β₁.
    pub beta1: f32,
    /// `1 - β₁`, which float32 would not give from β₁.
    pub rest1: f32,
    /// β₂.
    pub beta2: f32,
    /// `1 - β₂`.
    pub rest2: f32,
    /// What is left of the parameter by its decay.
    pub keep: f32,
    /// The rate, with the correction of `m`.
    pub size: f32,
    /// The correction of the root of `v`.
    pub root: f32,
    /// Added to the root.
    pub eps: f32,
}

/// The new parameter, `m` and `v`: the arithmetic of every backend.
#[cfg_attr(feature = "cubecl", cubecl::cube)]
pub(super) fn advance(step: &Step, param: f32, grad: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let m = step.beta1 * m + step.rest1 * grad;
    let v = step.beta2 * v + step.rest2 * grad * grad;
    let param = step.keep * param - step.size * m / (step.root * v.sqrt() + step.eps);
    (param, m, v)
}

#[cfg(feature = "cubecl")]
impl Step {
    /// The numbers as an argument of a kernel.
    pub(super) fn launch_arg(self) -> StepLaunch {
        let Self { beta1, rest1, beta2, rest2, keep, size, root, eps } = self;
        StepLaunch::new(beta1, rest1, beta2, rest2, keep, size, root, eps)
    }
}
