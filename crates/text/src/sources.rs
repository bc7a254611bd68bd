//! Where the files of a tokenizer come from.

use crate::{
    error::TextError,
    files::{Files, GENERATION, MODEL, SENTENCE_PIECE, TOKENIZER},
    gguf, tokenizer_model,
};
use std::path::Path;

/// Returns `true` if a folder has a tokenizer.
pub fn has_own(path: &Path) -> bool {
    [TOKENIZER, SENTENCE_PIECE].iter().any(|file| path.join(file).exists())
}

/// Reads the files of an adapter's folder, and from its base those that the folder has not: of a folder with
/// a tokenizer those about the end of a text, of another all but these.
pub fn adapter_files(adapter: &Path, base: &Path) -> Result<Files, TextError> {
    if !has_own(adapter) {
        return with_ends(files(base)?, adapter);
    }
    let mut own = files(adapter)?;
    for (name, bytes) in files(base)?.bytes {
        if [GENERATION, MODEL].contains(&name) {
            own.bytes.entry(name).or_insert(bytes);
        }
    }
    Ok(own)
}

/// Takes the tokens that end a text from an adapter's folder, if it has a file with them.
fn with_ends(mut base: Files, adapter: &Path) -> Result<Files, TextError> {
    if let Some(bytes) = Files::read_one(adapter, GENERATION)? {
        base.bytes.insert(GENERATION, bytes);
    }
    Ok(base)
}

/// Reads the files of a folder, or those that a GGUF file or a `tokenizer.model` stands for; of an adapter's
/// folder without a tokenizer, those of its base.
pub fn files(path: &Path) -> Result<Files, TextError> {
    if path.extension().is_some_and(|extension| extension == "gguf") {
        return gguf::files(path);
    }
    if !has_own(path)
        && let Some(base) = burn_lora_io::base_of(path)?
    {
        return with_ends(files(&burn_lora_io::hub::resolve(base)?)?, path);
    }
    let mut files = Files::read(path)?;
    if files.bytes.contains_key(SENTENCE_PIECE) {
        tokenizer_model::convert(&mut files)?;
    }
    Ok(files)
}
