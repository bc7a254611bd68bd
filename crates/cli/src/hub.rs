//! `burn-lora login` and `burn-lora push`.

use crate::program;
use burn_lora_io::hub::Hub;
use clap::Args;
use serde_json::json;
use std::{
    error::Error,
    io::{IsTerminal, Read, stdin},
    path::PathBuf,
};

/// Checks a token of Hugging Face's hub and keeps it, for downloads of gated models and for uploads.
///
/// The token is read from standard input, or from HF_TOKEN. It is kept where Python's huggingface_hub reads
/// it, too.
#[derive(Args)]
pub struct LoginArguments {}

/// Uploads an adapter or a merged model to Hugging Face's hub.
///
/// The repository is created if it does not exist. What is uploaded: safetensors, GGUF files, settings,
/// tokenizer, figures, and README.md, the model card, which is written if there is none.
#[derive(Args)]
pub struct PushArguments {
    /// Folder of an adapter, such as the output of `train`, or of a model
    folder: PathBuf,
    /// OWNER/NAME, or OWNER/NAME@BRANCH
    id: String,
    /// Make a new repository a private one
    #[arg(long)]
    private: bool,
    /// Message of the commit
    #[arg(long, default_value = "Upload by burn-lora")]
    message: String,
}

/// Runs the login.
pub fn login(_: &LoginArguments) -> Result<(), Box<dyn Error>> {
    let token = match std::env::var("HF_TOKEN") {
        Ok(token) if !token.trim().is_empty() => token,
        _ => {
            if stdin().is_terminal() {
                eprint!("Token (https://huggingface.co/settings/tokens): ");
                let mut line = String::new();
                stdin().read_line(&mut line)?;
                line
            } else {
                let mut text = String::new();
                stdin().take(4096).read_to_string(&mut text)?;
                text
            }
        }
    };
    let user = Hub::from_env().login(&token)?;
    program::result(
        format_args!("Logged in as {}; the token is in {}.", user.name, user.file.display()),
        &json!({ "user": user.name, "file": user.file }),
    );
    Ok(())
}

/// Runs the upload.
pub fn push(arguments: &PushArguments) -> Result<(), Box<dyn Error>> {
    let PushArguments { folder, id, private, message } = arguments;
    let pushed = burn_lora::train::push(folder, id, *private, message)?;
    program::result(
        format_args!("{} files are at {}", pushed.files, pushed.address),
        &json!({ "files": pushed.files, "address": pushed.address }),
    );
    Ok(())
}
