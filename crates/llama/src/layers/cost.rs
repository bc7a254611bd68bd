//! What the modules of a decoder layer keep for their backward pass: values per token, counted from
//! `forward`, each tensor of some size once.

/// What an adapter makes of the linear layers of a decoder layer, by their paths in it
/// (`self_attn.q_proj`).
pub trait LinearCosts {
    /// Returns `true` if the layer keeps its input, as for the gradient of A.
    fn keeps_input(&self, path: &str) -> bool;

    /// Returns the values per token that the layer keeps beside its input, such as `x · Aᵀ`.
    fn beside(&self, path: &str) -> usize;
}

/// Values per token of a pass through a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCost {
    /// Values in the compute dtype.
    pub values: usize,
    /// Values in float32.
    pub floats: usize,
}

impl TokenCost {
    /// Returns this cost of several tokens.
    pub fn times(self, count: usize) -> Self {
        Self { values: self.values * count, floats: self.floats * count }
    }

    /// Returns the cost with so many more values in the compute dtype.
    pub fn plus_values(self, values: usize) -> Self {
        Self { values: self.values + values, ..self }
    }

    /// Returns the bytes of this many tokens, with values of `size` bytes.
    pub fn bytes(&self, tokens: usize, size: usize) -> u64 {
        (tokens * (self.values * size + self.floats * 4)) as u64
    }
}

impl std::ops::Add for TokenCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { values: self.values + other.values, floats: self.floats + other.floats }
    }
}

/// Returns `true` if one of the layers keeps its input.
pub(super) fn any_keeps_input(costs: &dyn LinearCosts, paths: &[impl AsRef<str>]) -> bool {
    paths.iter().any(|path| costs.keeps_input(path.as_ref()))
}

/// Sum of what the layers keep beside their inputs.
pub(super) fn all_beside(costs: &dyn LinearCosts, paths: &[impl AsRef<str>]) -> usize {
    paths.iter().map(|path| costs.beside(path.as_ref())).sum()
}
