//! Generation with a key-value cache, one token per row at a time.

mod config;
mod sample;
mod stop;
mod text;

pub use config::GenerateConfig;
pub use text::GeneratedText;

use crate::{cache::KvCache, context::Segments, error::LlamaError, llama::Llama};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use config::wrong;
use sample::Sampler;
use std::ops::ControlFlow;

/// Generated tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// Reason why the generation ended.
    pub stopped: Stopped,
}

/// Reason why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// `max_new_tokens` was reached.
    Length,
    /// An end-of-text token or a stop token was generated.
    Token,
    /// A stop string was found.
    Text,
    /// The callback ended the row.
    Callback,
}

impl Llama {
    /// Continues prompts of tokens, all in one batch (shorter ones are padded on the left). Uses
    /// the adapters of the settings, or else those selected in the model; the same seed gives the
    /// same tokens.
    ///
    /// A row ends at an end-of-text token of `config.json` or a stop token of the settings.
    /// `on_token` is called with the row and each of its new tokens, and may end the row.
    ///
    /// ```no_run
    /// # let model: burn_lora_llama::Llama = unimplemented!();
    /// use burn_lora_llama::GenerateConfig;
    /// use std::ops::ControlFlow;
    ///
    /// let prompts = [vec![1, 450, 7483], vec![1, 15043]];
    /// let found = model.generate(&prompts, &GenerateConfig::new(16), |row, token| {
    ///     println!("{row}: {token}");
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert_eq!(found.len(), 2);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// - [`LlamaError::Generate`] if a setting is outside its range, a prompt is empty, or a token
    ///   is not in the vocabulary.
    /// - [`LlamaError::Device`] if the logits cannot be read from the device.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
        on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, LlamaError> {
        let ends = self.config.eos_token_ids();
        self.generate_until(prompts, config, &ends, on_token)
    }

    /// [`generate`](Self::generate) with the end-of-text tokens `ends`.
    fn generate_until(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
        ends: &[u32],
        mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, LlamaError> {
        config.validate()?;
        self.check_prompts(prompts)?;
        let mut rows: Vec<Row<'_>> =
            prompts.iter().map(|prompt| Row::new(config, prompt)).collect();
        if rows.is_empty() || config.max_new_tokens == 0 {
            return Ok(rows.into_iter().map(Row::finish).collect());
        }
        // Without a graph for gradients.
        let model = self.valid();
        let device = model.device();
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let mut length = lengths.iter().copied().max().unwrap_or(0);
        let padded = prompts.iter().flat_map(|prompt| {
            let padding = std::iter::repeat_n(0, length - prompt.len());
            padding.chain(prompt.iter().map(|token| *token as i32))
        });
        let mut tokens = upload(padded.collect(), [prompts.len(), length], &device);
        let capacity = length.saturating_add(config.max_new_tokens - 1);
        let mut cache = KvCache::new(model.config.layers.len(), capacity);
        for new in 1..=config.max_new_tokens {
            let segments = Segments::ending_together(length, lengths.iter().map(|l| l + new - 1));
            let segments = match &config.adapters {
                Some(adapters) => segments.with_adapters(adapters.clone()),
                None => segments,
            };
            let logits = model.step(tokens, &segments, &mut cache);
            let next = choose(logits, &mut rows, config)?;
            for (number, (row, &token)) in rows.iter_mut().zip(&next).enumerate() {
                if row.stopped.is_some() {
                    continue;
                }
                if ends.contains(&token) || config.stop_tokens.contains(&token) {
                    row.stopped = Some(Stopped::Token);
                    continue;
                }
                row.tokens.push(token);
                if on_token(number, token).is_break() {
                    row.stopped = Some(Stopped::Callback);
                }
            }
            if rows.iter().all(|row| row.stopped.is_some()) {
                break;
            }
            tokens =
                upload(next.iter().map(|token| *token as i32).collect(), [rows.len(), 1], &device);
            length += 1;
        }
        Ok(rows.into_iter().map(Row::finish).collect())
    }

    fn check_prompts(&self, prompts: &[Vec<u32>]) -> Result<(), LlamaError> {
        for (number, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                let reason = "there is nothing to continue: give it a token, such as the first of all \
                              texts";
                return Err(wrong("prompt", format!("number {number}, empty"), reason));
            }
            let vocabulary = self.config.vocab_size;
            if let Some(token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
                let found = format!("number {number} with token {token}");
                let reason = format!("the vocabulary has {vocabulary}: is this its tokenizer?");
                return Err(wrong("prompt", found, &reason));
            }
        }
        Ok(())
    }
}

/// State of one prompt.
struct Row<'a> {
    sampler: Sampler<'a>,
    tokens: Vec<u32>,
    stopped: Option<Stopped>,
}

impl<'a> Row<'a> {
    fn new(config: &'a GenerateConfig, prompt: &[u32]) -> Self {
        Self { sampler: Sampler::new(config, prompt), tokens: vec![], stopped: None }
    }

    fn finish(self) -> Generated {
        Generated { tokens: self.tokens, stopped: self.stopped.unwrap_or(Stopped::Length) }
    }
}

/// Next token of each row, from logits `[rows, vocabulary]`.
fn choose(
    logits: Tensor<2>,
    rows: &mut [Row<'_>],
    config: &GenerateConfig,
) -> Result<Vec<u32>, LlamaError> {
    let failed = |error: String| LlamaError::Device { tensor: "logits".into(), reason: error };
    if config.is_plain_greedy() {
        let tokens = logits.argmax(1).cast(DType::I32);
        let tokens: Vec<i32> = tokens.try_into_vec_as().map_err(|e| failed(e.to_string()))?;
        return Ok(tokens.into_iter().map(|token| token as u32).collect());
    }
    let width = logits.dims()[1];
    let logits = logits.cast(FloatDType::F32);
    let mut logits: Vec<f32> = logits.try_into_vec_as().map_err(|e| failed(e.to_string()))?;
    let tokens = rows.iter_mut().zip(logits.chunks_mut(width));
    Ok(tokens.map(|(row, logits)| row.sampler.next(logits)).collect())
}

fn upload(tokens: Vec<i32>, shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(tokens, shape), (device, DType::I32))
}
