//! Check of a tokenizer against a model.

use crate::causal_lm::Generate;
use burn_lora_io::escaped;
use burn_lora_text::Tokenizer;

/// Number of tokens that a warning names.
const NAMED: usize = 3;

/// Warns where a tokenizer and the model disagree.
pub(crate) fn check(model: &impl Generate, tokenizer: &Tokenizer) {
    let size = model.vocabulary();
    let beyond = tokenizer.vocab_size().saturating_sub(size);
    if beyond > 0 {
        let ids = (size..tokenizer.vocab_size()).filter_map(|id| u32::try_from(id).ok());
        let named = ids.take(1 << 16).filter_map(|id| Some((id, tokenizer.id_to_token(id)?)));
        let named = named.take(NAMED).map(|(id, token)| format!("`{}` is {id}", escaped(&token)));
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
    if let (Some(own), Some(model)) = (own, model.bos_token_id())
        && own != model
        && tokenizer.encode("", true).is_ok_and(|ids| ids.first() == Some(&own))
    {
        burn_lora_io::warn!(
            "`bos_token_id` of the model's configuration is {model}, and the tokenizer's is {own}: texts begin \
             with the latter"
        );
    }
}
