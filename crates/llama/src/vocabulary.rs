//! Check of a tokenizer against a model.

use crate::llama::Llama;
use burn_lora_io::escaped;
use burn_lora_text::Tokenizer;

/// Number of tokens that a warning names.
const NAMED: usize = 3;

impl Llama {
    /// Warns where a tokenizer and the model disagree: tokens without a row in the embeddings,
    /// end-of-text tokens outside the vocabulary, and a beginning-of-text token with another id
    /// than in `config.json`. Texts are encoded as the tokenizer says, as in transformers.
    ///
    /// ```
    /// # use burn::tensor::Device;
    /// # use burn_lora_llama::{Llama, Tokenizer};
    /// let model = Llama::from_pretrained("../../testdata/gqa").load(&Device::default())?;
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let (_, warnings) = burn_lora_io::collect(|| model.check_tokenizer(&tokenizer));
    /// assert!(warnings[0].contains("the vocabulary of the model has 128"));
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) {
        let size = self.config.vocab_size;
        let beyond = tokenizer.vocab_size().saturating_sub(size);
        if beyond > 0 {
            let ids = (size..tokenizer.vocab_size()).filter_map(|id| u32::try_from(id).ok());
            let named = ids.take(1 << 16).filter_map(|id| Some((id, tokenizer.id_to_token(id)?)));
            let named =
                named.take(NAMED).map(|(id, token)| format!("`{}` is {id}", escaped(&token)));
            burn_lora_io::warn!(
                "the tokenizer has numbers up to {}, and the vocabulary of the model has {size} \
                 tokens: texts with those beyond are refused ({}); take the model's own tokenizer, or \
                 resize its embeddings",
                tokenizer.vocab_size() - 1,
                named.collect::<Vec<_>>().join(", "),
            );
        }
        for id in tokenizer.eos_token_ids() {
            if *id as usize >= size {
                burn_lora_io::warn!(
                    "`eos_token_id` has {id}, and the vocabulary of the model has {size} tokens: no \
                     text will end at it"
                );
            }
        }
        let own = tokenizer.bos_token_id();
        let model = self.config.raw["bos_token_id"].as_u64();
        if let (Some(own), Some(model)) = (own, model)
            && u64::from(own) != model
            && tokenizer.encode("", true).is_ok_and(|ids| ids.first() == Some(&own))
        {
            burn_lora_io::warn!(
                "`bos_token_id` of config.json is {model}, and the tokenizer's is {own}: texts begin \
                 with the latter"
            );
        }
    }
}
