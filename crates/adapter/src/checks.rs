//! Validation of an adapter's settings.

use crate::{
    config::LoraConfig,
    error::AdapterError,
    init::Init,
    target::{check_rank, check_tokens},
    targets::Matcher,
};

/// An alpha that is usual at any rank (LoRA Without Regret, <https://thinkingmachines.ai/blog/lora/>).
const ALPHA: f64 = 32.0;

impl LoraConfig {
    /// Validates the settings.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for the first setting that cannot be used; [`AdapterError::Quant`] if
    /// LoftQ's quantization settings do not go together.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let check = |fits: bool, field, found: String, reason: &str| {
            let config = "LoraConfig";
            let error = || AdapterError::Config { config, field, found, reason: reason.into() };
            if fits { Ok(()) } else { Err(error()) }
        };
        for (field, rank) in self.ranks() {
            check_rank("LoraConfig", field, rank, "8 to 64 are usual")?;
        }
        let alphas = self.alpha_pattern.values().map(|&alpha| ("alpha_pattern", alpha));
        for (field, alpha) in std::iter::once(("lora_alpha", self.alpha)).chain(alphas) {
            // The scaling has to be a finite float32 number, too.
            let fits = (1e-30..=1e30).contains(&alpha);
            check(fits, field, alpha.to_string(), "an alpha is a positive number, up to 1e30")?;
        }
        let fits = (0.0..1.0).contains(&self.dropout);
        check(fits, "lora_dropout", self.dropout.to_string(), "it has to be in [0, 1)")?;
        let targets = self.target_config();
        Matcher::new(&targets)?;
        if !self.target_parameters.is_empty() {
            let found = || self.target_parameters.join(", ");
            let reason = "an expert's parameters cannot have dropout: set it to 0";
            check(self.dropout == 0.0, "target_parameters", found(), reason)?;
            let reason = "an expert's parameters cannot have DoRA: leave one of them out";
            check(!self.dora, "target_parameters", found(), reason)?;
        }
        for name in &targets.beside {
            let both = !self.modules_to_save.contains(name);
            let reason = "modules_to_save trains all of its tokens: say one of the two";
            check(both, "trainable_token_indices", format!("of `{name}`"), reason)?;
        }
        for list in self.tokens.iter().flat_map(|tokens| tokens.lists()) {
            check_tokens("LoraConfig", "trainable_token_indices", list)?;
        }
        if matches!(self.init, Init::Orthogonal) {
            let fits = self.ranks().all(|(_, rank)| rank.is_multiple_of(2));
            check(fits, "r", self.rank.to_string(), "orthogonal initialisation needs even ranks")?;
        }
        self.init.validate()
    }

    /// The ranks, each with the name of its setting.
    fn ranks(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let patterns = self.rank_pattern.values().map(|&rank| ("rank_pattern", rank));
        std::iter::once(("r", self.rank)).chain(patterns)
    }

    /// Warnings of settings that are valid but unusual.
    pub(crate) fn unusual(&self) -> Vec<String> {
        let mut found = vec![];
        for (field, rank) in self.ranks().filter(|(_, rank)| *rank > 256) {
            found.push(format!("{field} is {rank}: more than 256 seldom helps"));
        }
        let ranks = |key| self.rank_pattern.get(key).copied().unwrap_or(self.rank);
        let alphas = self.alpha_pattern.iter();
        let alphas = alphas.map(|(key, &alpha)| ("alpha_pattern", alpha, ranks(key)));
        for (field, alpha, rank) in
            std::iter::once(("lora_alpha", self.alpha, self.rank)).chain(alphas)
        {
            if alpha > (4.0 * rank as f64).max(ALPHA) {
                found.push(format!("{field} is {alpha}, over 4 times the rank {rank}"));
            }
        }
        if self.dropout > 0.3 {
            found.push(format!("lora_dropout is {}: more than 0.3 is unusual", self.dropout));
        }
        found
    }
}
