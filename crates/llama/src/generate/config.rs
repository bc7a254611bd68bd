//! Generation settings: sampling and stopping.

use crate::error::LlamaError;
use burn_lora_adapter::ActiveAdapters;
use serde::{Deserialize, Serialize};

/// Most tokens that are looked up at a time.
const LOOKUP: usize = 63;

/// Generation settings. The defaults are greedy, as in transformers.
///
/// Logits are processed in transformers' order: repetition penalty, temperature, top-k,
/// top-p, min-p; the presence and frequency penalties, which it has not, come after the repetition penalty.
///
/// ```
/// use burn_lora_llama::GenerateConfig;
///
/// let greedy = GenerateConfig::new(64);
/// let sampled = GenerateConfig::new(256).temperature(0.7).top_p(0.9).seed(42).stop("\nUser:");
/// assert!(sampled.validate().is_ok());
/// assert!(greedy.top_p(1.5).validate().is_err());
/// ```
///
/// In a file, fields have transformers' names. What is left out has its default; adapters are not
/// part of it:
///
/// ```
/// # use burn_lora_llama::GenerateConfig;
/// let config: GenerateConfig =
///     serde_json::from_str(r#"{"max_new_tokens": 64, "stop_strings": ["User:"]}"#)?;
/// assert_eq!(config, GenerateConfig::new(64).stop("User:"));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    pub(crate) max_new_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) log_probs: Option<usize>,
    #[serde(rename = "prompt_lookup_num_tokens")]
    pub(crate) prompt_lookup: usize,
    pub(crate) seed: u64,
    pub(crate) seed_by_row: bool,
    pub(crate) stop_strings: Vec<String>,
    pub(crate) stop_tokens: Vec<u32>,
    #[serde(skip)]
    pub(crate) adapters: Option<ActiveAdapters>,
}

impl Default for GenerateConfig {
    /// Greedy, at most 128 new tokens.
    fn default() -> Self {
        Self::new(128)
    }
}

impl GenerateConfig {
    /// Creates greedy settings, for at most `max_new_tokens` new tokens.
    pub fn new(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            log_probs: None,
            prompt_lookup: 0,
            seed: 0,
            seed_by_row: false,
            stop_strings: vec![],
            stop_tokens: vec![],
            adapters: None,
        }
    }

    /// Sets the maximum number of new tokens.
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Sets the temperature, which divides the logits before sampling; 0 takes the likeliest token.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets top-k: samples from the `k` likeliest tokens; 0 samples from all.
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = k;
        self
    }

    /// Sets top-p: samples from the fewest tokens whose probabilities sum to `p`; 1 samples from
    /// all (arXiv:1904.09751).
    pub fn top_p(mut self, p: f32) -> Self {
        self.top_p = p;
        self
    }

    /// Sets min-p: samples from the tokens that are at least `p` times as likely as the likeliest
    /// one (arXiv:2407.01082).
    pub fn min_p(mut self, p: f32) -> Self {
        self.min_p = p;
        self
    }

    /// Sets the repetition penalty: logits of tokens already in the row are divided by it, or
    /// multiplied if negative (arXiv:1909.05858); 1 leaves them unchanged.
    pub fn repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets the presence penalty: what is taken from the logit of each token that was generated before in the row (OpenAI's
    /// API); below 0, such tokens become likelier.
    pub fn presence_penalty(mut self, penalty: f32) -> Self {
        self.presence_penalty = penalty;
        self
    }

    /// Sets the frequency penalty: what is taken from the logit of a token for each time that it was generated before in the
    /// row (OpenAI's API).
    pub fn frequency_penalty(mut self, penalty: f32) -> Self {
        self.frequency_penalty = penalty;
        self
    }

    /// Sets that a [`Generation`](crate::Generation) says the log-probability of each token, and of so many of the likeliest
    /// ones at its place.
    pub fn log_probs(mut self, likeliest: usize) -> Self {
        self.log_probs = Some(likeliest);
        self
    }

    /// Sets how many tokens may be looked up at a time in the text itself, where it has said the same before (0: none). They are
    /// checked in one pass, which takes about as long as one for a token: for answers that repeat much of the prompt, as in
    /// editing or summaries. What is generated is what would be without it, up to how sums of more rows round.
    pub fn prompt_lookup(mut self, tokens: usize) -> Self {
        self.prompt_lookup = tokens;
        self
    }

    /// Sets the seed of sampling. The samples of a row do not depend on the other rows of the
    /// batch.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets whether each prompt has a seed of its own: the seed plus the prompt's number. Otherwise all have the same.
    pub fn seed_by_row(mut self, by_row: bool) -> Self {
        self.seed_by_row = by_row;
        self
    }

    /// Adds a stop string, which ends the row and is not part of the result. Only
    /// [`generate_text`](crate::GenerateExt::generate_text) and [`chat`](crate::GenerateExt::chat) use it.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop_strings.push(text.into());
        self
    }

    /// Adds a stop token, which ends the row and is not part of the result.
    pub fn stop_token(mut self, token: u32) -> Self {
        self.stop_tokens.push(token);
        self
    }

    /// Sets the adapters, in place of those selected in the model: for all prompts, or by rows one
    /// for each ([`activate`](burn_lora_adapter::AdaptableExt::activate)). Several threads can thus
    /// use one model with adapters of their own. A model of your own finds them in
    /// [`Segments::adapters`](crate::Segments::adapters).
    pub fn adapters(mut self, adapters: ActiveAdapters) -> Self {
        self.adapters = Some(adapters);
        self
    }

    /// Validates the settings, as every generation does.
    ///
    /// # Errors
    /// [`LlamaError::Generate`] if a value is outside its range.
    pub fn validate(&self) -> Result<(), LlamaError> {
        let from = |field, value: f32, ok: bool, reason: &str| {
            if ok { Ok(()) } else { Err(wrong(field, value, reason)) }
        };
        let (t, p, min, penalty) =
            (self.temperature, self.top_p, self.min_p, self.repetition_penalty);
        from("temperature", t, t.is_finite() && t >= 0.0, "expected a number from 0")?;
        from("top_p", p, p > 0.0 && p <= 1.0, "expected a number above 0, up to 1")?;
        from("min_p", min, (0.0..=1.0).contains(&min), "expected a number from 0 to 1")?;
        let ok = penalty.is_finite() && penalty > 0.0;
        from("repetition_penalty", penalty, ok, "expected a number above 0")?;
        for (field, penalty) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            from(
                field,
                penalty,
                (-2.0..=2.0).contains(&penalty),
                "expected a number from -2 to 2",
            )?;
        }
        if self.prompt_lookup > LOOKUP {
            let reason = format!("expected at most {LOOKUP}");
            return Err(wrong("prompt_lookup_num_tokens", self.prompt_lookup, &reason));
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return Err(wrong("stop", "\"\"", "an empty text is everywhere"));
        }
        Ok(())
    }

    /// Returns `true` if all that is asked is the argmax of the unmodified logits, which the device can find.
    pub(crate) fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.has_penalties() && self.log_probs.is_none()
    }

    /// Returns `true` if logits depend on the tokens before beyond the model.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

pub(super) fn wrong(field: &'static str, found: impl ToString, reason: &str) -> LlamaError {
    LlamaError::Generate { field, found: found.to_string(), reason: reason.into() }
}
