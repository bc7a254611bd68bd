//! Vocabulary of another size.

use crate::{error::LlamaError, llama::Llama};
use burn_lora_adapter::{Adaptable, AdaptableExt, AdapterError, Layers, LayersMut, join};
use burn_lora_text::Tokenizer;

/// Path of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";
/// Path of the output head.
const HEAD: &str = "lm_head";

impl Llama {
    /// Resizes the vocabulary of the model: embedding, output head and configuration. Returns the new
    /// size, `tokens` rounded up to a multiple of `pad_to_multiple_of`.
    ///
    /// Each new row is the mean of the old ones: the mean of embedding and of head, computed in float32.
    /// transformers' `resize_token_embeddings` draws new rows around the same mean, with a covariance of
    /// `1e-9` times that of the rows: 3e-5 of their standard deviation. Of a smaller vocabulary the first
    /// rows remain, as in transformers.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_lora_llama::Llama;
    ///
    /// let mut model = Llama::from_pretrained("../../testdata/gqa").load(&Device::default())?;
    /// assert_eq!(model.config.vocab_size, 128);
    /// assert_eq!(model.resize_token_embeddings(130, None)?, 130);
    /// assert_eq!(model.resize_token_embeddings(131, Some(64))?, 192);
    /// assert_eq!(model.config.vocab_size, 192);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlamaError::Adapter`] if embedding or head has an adapter (resize before it is attached), or the
    /// size is 0.
    pub fn resize_token_embeddings(
        &mut self,
        tokens: usize,
        pad_to_multiple_of: Option<usize>,
    ) -> Result<usize, LlamaError> {
        let tokens = match pad_to_multiple_of {
            Some(multiple) if multiple > 0 => tokens.next_multiple_of(multiple),
            _ => tokens,
        };
        self.resize_vocabulary(tokens)?;
        Ok(tokens)
    }

    /// Grows the vocabulary for the tokens of a tokenizer, if it has more than the model. A model with
    /// more rows than tokens stays as it is: the rows beyond are padding.
    ///
    /// # Errors
    /// As [`resize_token_embeddings`](Self::resize_token_embeddings).
    pub fn fit_tokenizer(&mut self, tokenizer: &Tokenizer) -> Result<(), LlamaError> {
        if tokenizer.vocab_size() > self.config.vocab_size {
            self.resize_token_embeddings(tokenizer.vocab_size(), None)?;
        }
        Ok(())
    }

    fn resize_vocabulary(&mut self, tokens: usize) -> Result<(), AdapterError> {
        self.resize_rows(&[EMBEDDING, HEAD], tokens)?;
        self.config.set_vocab_size(tokens);
        Ok(())
    }
}

impl Adaptable for Llama {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.model.collect(&join(path, "model"), layers);
        self.lm_head.collect(&join(path, HEAD), layers);
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.model.collect_mut(&join(path, "model"), layers);
        self.lm_head.collect_mut(&join(path, HEAD), layers);
    }

    fn resize_for_adapter(&mut self, tokens: usize) -> Result<bool, AdapterError> {
        self.resize_vocabulary(tokens).map(|()| true)
    }
}
