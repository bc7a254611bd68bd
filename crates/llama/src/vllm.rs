//! Adapters for vLLM.
//!
//! Source: vLLM 0.33.0: `vllm/lora/peft_helper.py` (settings), `lora_model.py` and `utils.py` (names of tensors),
//! `vllm/config/lora.py` (ranks), `vllm/model_executor/models/` (layers of a family).

use crate::{error::LlamaError, llama::Llama};
use burn_lora_adapter::{Adaptable, AdaptableExt};
use std::path::Path;

/// Values that `--max-lora-rank` takes.
const RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// Families with `lm_head` in the `embedding_modules` of their classes.
const WITH_HEAD: [&str; 5] = ["llama", "mixtral", "phi3", "qwen3", "qwen3_moe"];

impl Llama {
    /// Exports an adapter as [`export_adapter`](AdaptableExt::export_adapter) does, if vLLM loads it. Returns the
    /// `--max-lora-rank` that it needs.
    ///
    /// # Errors
    /// - Those of [`export_adapter`](AdaptableExt::export_adapter): DoRA, whole layers, rows of tokens,
    ///   embeddings, experts, biases.
    /// - [`LlamaError::Format`] if it updates the output head of a family that has none in vLLM's LoRA
    ///   (Mistral, Qwen 2, Gemma 3, gpt-oss), or its rank is over 512.
    /// - [`LlamaError::Io`] if a file cannot be written.
    pub fn export_adapter_for_vllm(
        &self,
        name: &str,
        folder: impl AsRef<Path>,
    ) -> Result<usize, LlamaError> {
        let folder = folder.as_ref();
        let family = self.config.family.model_type();
        let head = self.layers().into_iter().find(|(path, _)| path == "lm_head");
        if head.is_some_and(|(_, head)| head.adapters().get(name).is_some())
            && !WITH_HEAD.contains(&family)
        {
            let reason = format!(
                "`{name}` updates `lm_head`, which vLLM's LoRA has not for {family}: merge it instead, or \
                 write a .gguf file for llama.cpp"
            );
            return Err(LlamaError::format(folder, reason));
        }
        let rank = self.exported_rank(name)?;
        let Some(most) = RANKS.into_iter().find(|most| *most >= rank) else {
            let reason =
                format!("`{name}` has rank {rank}, and vLLM loads up to 512: merge it instead");
            return Err(LlamaError::format(folder, reason));
        };
        self.export_adapter(name, folder)?;
        Ok(most)
    }
}
