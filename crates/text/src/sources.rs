//! Where the files of a tokenizer come from.

use crate::{
    error::TextError,
    files::{Files, SENTENCE_PIECE, TOKENIZER},
    gguf, tokenizer_model,
};
use std::path::Path;

/// Reads the files of a folder, or those that a GGUF file or a `tokenizer.model` stands for; of an adapter's
/// folder without a tokenizer, those of its base.
pub fn files(path: &Path) -> Result<Files, TextError> {
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return gguf::files(path);
    }
    let own = [TOKENIZER, SENTENCE_PIECE].iter().any(|file| path.join(file).exists());
    if !own && let Some(base) = burn_lora_io::base_of(path)? {
        return files(&burn_lora_io::hub::resolve(base)?);
    }
    let mut files = Files::read(path)?;
    if files.bytes.contains_key(SENTENCE_PIECE) {
        tokenizer_model::convert(&mut files)?;
    }
    Ok(files)
}
