//! Settings of a client of the hub.

use std::{env, path::PathBuf};

/// A client of the hub: where models and data come from, and where they are cached.
///
/// ```no_run
/// use burn_lora_io::hub::Hub;
///
/// let folder = Hub::from_env().cache("/data/models").download("HuggingFaceTB/SmolLM2-135M@main")?;
/// # Ok::<_, burn_lora_io::FileError>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is downloaded before `download`"]
pub struct Hub {
    pub(super) cache: Option<PathBuf>,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) offline: bool,
}

impl Hub {
    /// Creates a client from the environment variables of Python's `huggingface_hub`:
    ///
    /// | variable | what | default |
    /// |---|---|---|
    /// | `HF_HOME` | folder of cache and token | `huggingface` in `$XDG_CACHE_HOME` or `~/.cache` |
    /// | `HF_HUB_CACHE` | folder of the cache | `$HF_HOME/hub` |
    /// | `HF_TOKEN` | token for private and gated models | what [`login`](Self::login) wrote |
    /// | `HF_TOKEN_PATH` | file of that token | `$HF_HOME/token` |
    /// | `HF_ENDPOINT` | address of a mirror | `https://huggingface.co` |
    /// | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: only the cache is used | 0 |
    pub fn from_env() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(env::home_dir()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let cache = variable("HF_HUB_CACHE").map(PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map(PathBuf::from);
        let token_file = token_file.or_else(|| Some(home.as_ref()?.join("token")));
        let written = || crate::read_to_string(token_file.as_ref()?).ok();
        let token = variable("HF_TOKEN").or_else(written).map(|token| token.trim().to_owned());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            cache: cache.or_else(|| Some(home.as_ref()?.join("hub"))),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.filter(|token| !token.is_empty()),
            token_file,
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
        }
    }

    /// Sets the folder of the cache.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Sets the hub's address.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// Sets the access token.
    pub fn token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// Sets the file that [`login`](Self::login) writes the token to.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.token_file = Some(file.into());
        self
    }

    /// Sets whether only the cache is used, without a request to the hub.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }
}
