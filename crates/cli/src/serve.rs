//! `burn-lora serve`.

use crate::{options::BaseOptions, options::tokenizer};
use burn_lora::{
    prelude::{AdaptableExt, GenerateExt, Interrupt},
    serve::{ServeConfig, Server},
};
use clap::Args;
use std::{
    error::Error,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  burn-lora serve models/Llama-3.2-1B-Instruct --adapter brief=out --format nf4
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"brief\", \"messages\": [{\"role\": \"user\", \"content\": \"What is LoRA?\"}]}'

The page at http://127.0.0.1:8000 is for a chat.";

/// Answers requests with a model and its adapters, by OpenAI's API.
///
/// Requests name the adapter as their model; those with different adapters are answered in one batch. Ctrl-C ends the server
/// when the answers on their way are complete, or after --grace seconds.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: BaseOptions,
    /// An adapter in PEFT's format, and the name under which it answers; may be given several times
    #[arg(long, value_name = "NAME=FOLDER", value_parser = adapter)]
    adapter: Vec<(String, PathBuf)>,
    /// Name under which the base answers [default: that of its folder or file]
    #[arg(long)]
    name: Option<String>,
    /// Address to listen on; with any other than this machine's own, others can ask
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes one that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that requests have to bring [default: that of the variable BURN_LORA_API_KEY]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Let requests load and unload adapters from below this folder; may be given several times
    #[arg(long, value_name = "FOLDER")]
    adapters_from: Vec<PathBuf>,
    /// Texts that are continued at the same time
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Texts that may wait; further requests are refused
    #[arg(long, default_value_t = 256)]
    queue: usize,
    /// Tokens of a text with its prompt [default: 4096, or the model's if that is less]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Look up so many tokens at a time in the text itself, and check them in one pass: faster where answers repeat much of it
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    prompt_lookup: usize,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Seconds that answers may still take when the server ends
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
}

fn adapter(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.into(), folder.into()))
        }
        _ => Err("expected NAME=FOLDER".into()),
    }
}

/// Serves until it is interrupted.
pub fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { model, adapter, host, port, adapters_from, batch, queue, .. } = arguments;
    let key = arguments.api_key.clone();
    let key = key.or_else(|| std::env::var("BURN_LORA_API_KEY").ok().filter(|key| !key.is_empty()));
    // Before the model is loaded, as that takes long.
    let socket = listen(host, *port)?;
    let address = socket.local_addr()?;
    if !address.ip().is_loopback() && key.is_none() {
        burn_lora_io::warn!("whoever reaches {address} can use this server: --api-key sets a key");
    }
    let interrupt = Interrupt::on_ctrl_c()?;
    let device = model.device()?;
    let tokenizer = tokenizer(&model.model, None)?;
    let llama = model.load(&device)?;
    llama.check_tokenizer(&tokenizer);
    let most = llama.config.max_position_embeddings;
    let max_length = arguments.max_length.unwrap_or(4096.min(most));
    if max_length > most {
        burn_lora_io::warn!(
            "--max-length is {max_length}, and the model was trained with up to {most}"
        );
    }
    eprintln!("{device:?}: {:.1} MB", llama.summary().bytes() as f64 / 1e6);
    let config = ServeConfig {
        batch: *batch,
        queue: *queue,
        max_length,
        prompt_lookup: arguments.prompt_lookup,
        timeout: Duration::from_secs(arguments.timeout),
        grace: Duration::from_secs(arguments.grace),
        key,
        adapter_folders: adapters_from.clone(),
        tokenizer: Some(model.model.clone()),
    };
    let name = arguments.name.clone().unwrap_or_else(|| name_of(&model.model));
    let mut server = Server::new(&name, llama, tokenizer, config)?;
    for (name, folder) in adapter {
        server.load_adapter(name, folder)?;
    }
    let names = adapter.iter().map(|(name, _)| name.clone());
    let names: Vec<_> = std::iter::once(name).chain(names).collect();
    eprintln!("http://{address} answers as {}", names.join(", "));
    server.run(socket, move || interrupt.is_raised())?;
    Ok(())
}

/// The socket of an address.
fn listen(host: &str, port: u16) -> Result<TcpListener, Box<dyn Error>> {
    let wrong = |error| format!("--host {host} --port {port}: {error}");
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(wrong)?.collect();
    Ok(TcpListener::bind(&addresses[..]).map_err(wrong)?)
}

/// The name of a model: of its folder or file, or its id.
fn name_of(model: &std::path::Path) -> String {
    let full = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    match model.exists() {
        true => name.unwrap_or(full.as_os_str()).to_string_lossy().into_owned(),
        false => model.display().to_string(),
    }
}
