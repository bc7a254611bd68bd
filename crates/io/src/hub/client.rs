//! Downloads from the hub, and its cache.

use super::id::ModelId;
use crate::{
    FileError, brief,
    shards::{INDEX, SINGLE, read_index},
};
use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    cell::Cell,
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The files of a model other than its weights.
const FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
];

/// Attempts at downloading a file if the connection breaks; each resumes where the last one ended.
const TRIES: usize = 3;

/// Downloads a model with the settings of [`Hub::from_env`], and returns its folder in the cache.
///
/// # Errors
/// As [`Hub::download`].
pub fn download(id: &str, progress: bool) -> Result<PathBuf, FileError> {
    Hub::from_env().progress(progress).download(id)
}

/// A client of the hub: where models come from, and where they are cached.
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
    cache: Option<PathBuf>,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    progress: bool,
}

impl Hub {
    /// Creates a client from the environment variables of Python's `huggingface_hub`:
    ///
    /// | variable | what | default |
    /// |---|---|---|
    /// | `HF_HOME` | folder of cache and token | `huggingface` in `$XDG_CACHE_HOME` or `~/.cache` |
    /// | `HF_HUB_CACHE` | folder of the cache | `$HF_HOME/hub` |
    /// | `HF_TOKEN` | token for private and gated models | what `huggingface-cli login` wrote |
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
        let written = || crate::read_to_string(&home.as_ref()?.join("token")).ok();
        let token = variable("HF_TOKEN").or_else(written).map(|token| token.trim().to_owned());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            cache: cache.or_else(|| Some(home.as_ref()?.join("hub"))),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.filter(|token| !token.is_empty()),
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            progress: false,
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

    /// Sets whether only the cache is used, without a request to the hub.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets whether a bar is shown for each file, if standard error is a terminal.
    pub fn progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }

    /// Downloads the files of the model `owner/name` or `owner/name@revision` that the cache lacks:
    /// configuration, tokenizer and safetensors. Returns the model's folder in the cache.
    ///
    /// If the hub cannot be reached or refuses, the cached files are used, provided that they are
    /// complete.
    ///
    /// # Errors
    /// [`FileError::Hub`] for an invalid id; for a model that the hub does not have or does not
    /// provide, or that has no safetensors; for a network failure while files are missing in the
    /// cache.
    pub fn download(&self, id: &str) -> Result<PathBuf, FileError> {
        let failed = |reason| FileError::Hub { model: id.into(), reason };
        let Some(model) = ModelId::parse(id) else {
            return Err(failed("expected `owner/name` or `owner/name@revision`".into()));
        };
        let Some(cache) = &self.cache else {
            return Err(failed("there is no home directory to cache it in: set HF_HOME".into()));
        };
        let kept = || in_cache(cache, &model);
        if self.offline {
            let add = |reason| failed(format!("{reason}; HF_HUB_OFFLINE is set: unset it"));
            return kept().map_err(add);
        }
        self.fetch(&model, cache).or_else(|reason| {
            let folder = kept().map_err(|_| failed(reason.clone()))?;
            crate::warn!("{id}: {reason}; using what is in the cache");
            Ok(folder)
        })
    }

    fn fetch(&self, model: &ModelId<'_>, cache: &Path) -> Result<PathBuf, String> {
        let cache = Cache::new(cache.to_owned());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.trim_end_matches('/').into())
            .with_token(self.token.clone())
            .with_user_agent("burn-lora", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.reason(model, &error))?;
        let repo = repo(model, model.revision);
        let info = api.repo(repo.clone()).info().map_err(|error| self.reason(model, &error))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(format!("{} names no commit", self.endpoint));
        }
        let has = |file: &str| info.siblings.iter().any(|sibling| sibling.rfilename == file);
        if !has(FILES[0]) {
            return Err(format!("the repository has no {}", FILES[0]));
        }
        if !has(INDEX) && !has(SINGLE) {
            let reason = format!("the repository has neither {SINGLE} nor {INDEX}");
            return Err(format!("{reason}: download another format yourself"));
        }
        // All files are those of one commit, whatever is pushed meanwhile.
        let snapshot = cache.repo(repo.clone()).pointer_path(&commit);
        let files = api.repo(self::repo(model, &commit));
        let get = |file: &str| self.file(model, &files, &snapshot, file);
        for file in FILES.into_iter().filter(|file| has(file)) {
            get(file)?;
        }
        let names = info.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        names.filter(|name| is_template(name)).try_for_each(get)?;
        if has(SINGLE) {
            get(SINGLE)?;
        } else {
            get(INDEX)?;
            let shards = read_index(&snapshot.join(INDEX)).map_err(|error| error.to_string())?;
            shards.keys().try_for_each(|shard| get(shard))?;
        }
        // Written last, so that an interrupted download leaves the previous commit in use.
        let written = cache.repo(repo).create_ref(&commit);
        written.map_err(|error| format!("{}: {error}", cache.path().display()))?;
        Ok(snapshot)
    }

    /// Downloads a file, unless it is cached.
    fn file(
        &self,
        model: &ModelId<'_>,
        files: &ApiRepo,
        snapshot: &Path,
        file: &str,
    ) -> Result<(), String> {
        let expected = snapshot.join(file);
        if expected.exists() {
            return Ok(());
        }
        let size = Cell::new(0);
        let mut tries = (0..TRIES)
            .map(|_| files.download_with_progress(file, Bar { bar: self.bar(file), size: &size }));
        let path = loop {
            match tries.next() {
                Some(Ok(path)) => break path,
                Some(Err(error)) if status(&error).is_some() || tries.len() == 0 => {
                    return Err(format!("{file}: {}", self.reason(model, &error)));
                }
                Some(Err(_)) => {}
                None => unreachable!("the last try was returned"),
            }
        };
        if path != expected {
            return Err(format!("{file}: {} sent it of another commit", self.endpoint));
        }
        let found = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if found != size.get() as u64 {
            // Otherwise the truncated file would be used from now on.
            let blob = fs::canonicalize(&path);
            blob.and_then(fs::remove_file).and_then(|()| fs::remove_file(&path)).ok();
            return Err(format!("{file}: {found} bytes came, of {}: try again", size.get()));
        }
        Ok(())
    }

    fn bar(&self, file: &str) -> ProgressBar {
        let target = match self.progress {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
        );
        ProgressBar::with_draw_target(None, target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(file.to_owned())
    }

    /// The reason of an error, and how to fix it.
    fn reason(&self, model: &ModelId<'_>, error: &ApiError) -> String {
        let Self { endpoint, .. } = self;
        let ModelId { name, revision } = model;
        match (status(error), error) {
            (Some(status @ (401 | 403)), _) => format!(
                "{endpoint} refused ({status}): the model does not exist, or is private or gated. \
                 Accept its terms at {endpoint}/{name}, and set HF_TOKEN or run \
                 `huggingface-cli login`"
            ),
            (Some(404), _) => {
                format!("{endpoint} has no such model, or it has no revision `{revision}`")
            }
            (_, ApiError::LockAcquisition(path)) => {
                format!("another process downloads it, and holds {}", path.display())
            }
            _ => format!("{endpoint}: {error}, and the cache does not have all of it"),
        }
    }
}

/// Returns `true` if a file is one of several chat templates.
fn is_template(name: &str) -> bool {
    let file = name.strip_prefix("additional_chat_templates/");
    file.is_some_and(|file| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        file.ends_with(".jinja") && !file.starts_with('.') && file.chars().all(plain)
    })
}

fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn repo(model: &ModelId<'_>, revision: &str) -> Repo {
    Repo::with_revision(model.name.into(), RepoType::Model, revision.into())
}

/// The HTTP status of an error, if it has one.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Returns the folder of a model that is completely cached; the error says what is missing.
fn in_cache(cache: &Path, model: &ModelId<'_>) -> Result<PathBuf, String> {
    let folder = cache.join(repo(model, model.revision).folder_name());
    let reference = folder.join("refs").join(model.revision);
    let wrong = |reason: String| Err(format!("{}: {reason}", reference.display()));
    let commit = match crate::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => model.revision.to_owned(),
        Err(error) => return wrong(error.to_string()),
    };
    // A path could lead out of the cache.
    if commit != model.revision && !is_commit(&commit) {
        return wrong(format!("`{}` is no commit: remove the file", brief(&commit)));
    }
    let snapshot = folder.join("snapshots").join(commit);
    let missing = |file: &str| format!("{} is not in the cache", snapshot.join(file).display());
    let check = |file: &str| snapshot.join(file).exists().then_some(()).ok_or(missing(file));
    check(FILES[0])?;
    if check(SINGLE).is_err() && snapshot.join(INDEX).exists() {
        let shards = read_index(&snapshot.join(INDEX)).map_err(|error| error.to_string())?;
        shards.keys().try_for_each(|shard| check(shard))?;
    } else {
        check(SINGLE)?;
    }
    Ok(snapshot)
}

/// Progress bar of a file; it also records the file's size.
struct Bar<'a> {
    bar: ProgressBar,
    size: &'a Cell<usize>,
}

impl Progress for Bar<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        self.size.set(size);
        self.bar.set_length(size as u64);
    }

    fn update(&mut self, bytes: usize) {
        self.bar.inc(bytes as u64);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
