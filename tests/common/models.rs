//! Where real tokenizers and models are.

use std::path::PathBuf;

/// The folder that scripts/fetch-tokenizers.sh fills with real tokenizers and models. Tests that need
/// it are ignored where they are not asked for.
pub fn models() -> PathBuf {
    let folder = std::env::var_os("BURN_LORA_MODELS");
    folder.expect("BURN_LORA_MODELS names the folder of scripts/fetch-tokenizers.sh").into()
}
