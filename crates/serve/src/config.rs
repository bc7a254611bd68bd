//! Settings of a server.

use std::{fmt, path::PathBuf, time::Duration};

/// Settings of a [`Server`](crate::Server).
#[derive(Clone)]
pub struct ServeConfig {
    /// Most texts that are continued at the same time; 16 by default. Each has a row of the cache, so that the memory of the
    /// cache is this times the longest text.
    pub batch: usize,
    /// Most texts that wait for others to end; 256 by default. A further request is refused with the status 429.
    pub queue: usize,
    /// Most tokens of a text with its prompt; 4096 by default.
    pub max_length: usize,
    /// Tokens that texts look up at a time in themselves ([`GenerateConfig::prompt_lookup`](burn_lora_llama::GenerateConfig::prompt_lookup)); none by default.
    pub prompt_lookup: usize,
    /// Longest time that a request takes, its waiting included; 10 minutes by default.
    pub timeout: Duration,
    /// Longest time that requests may go on after the server was told to end; 30 seconds by default.
    pub grace: Duration,
    /// Key that requests have to bring (`Authorization: Bearer KEY`); `None` by default.
    pub key: Option<String>,
    /// Folders below which adapters may be loaded by requests; none by default, and then requests load and unload nothing.
    pub adapter_folders: Vec<PathBuf>,
    /// Where the model's tokenizer was loaded from, for adapters that have one of their own; `None` by default.
    pub tokenizer: Option<PathBuf>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            batch: 16,
            queue: 256,
            max_length: 4096,
            prompt_lookup: 0,
            timeout: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            key: None,
            adapter_folders: vec![],
            tokenizer: None,
        }
    }
}

impl fmt::Debug for ServeConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, queue, max_length, prompt_lookup, timeout, grace, .. } = self;
        let Self { key, adapter_folders, tokenizer, .. } = self;
        f.debug_struct("ServeConfig")
            .field("batch", batch)
            .field("queue", queue)
            .field("max_length", max_length)
            .field("prompt_lookup", prompt_lookup)
            .field("timeout", timeout)
            .field("grace", grace)
            .field("key", &key.as_ref().map(|_| ".."))
            .field("adapter_folders", adapter_folders)
            .field("tokenizer", tokenizer)
            .finish()
    }
}
