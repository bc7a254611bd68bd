//! Downloads from the hub, and its cache.

use super::{
    id::{Id, Kind},
    select,
    settings::Hub,
};
use crate::{FileError, brief, progress::Work};
use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};
use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Attempts at downloading a file if the connection breaks; each resumes where the last one ended.
const TRIES: usize = 3;

impl Hub {
    /// Downloads the files of the model or adapter `owner/name` or `owner/name@revision` that the cache
    /// lacks: configuration, tokenizer and weights. Returns its folder in the cache; with the name of
    /// a GGUF file after the id (`owner/name/model-Q4_K_M.gguf`) that file only, and its path.
    ///
    /// If the hub cannot be reached or refuses, the cached files are used, provided that they are
    /// complete.
    ///
    /// # Errors
    /// [`FileError::Hub`] for an invalid id; for a model that the hub does not have or does not
    /// provide, or that has no weights; for a network failure while files are missing in the
    /// cache.
    pub fn download(&self, id: &str) -> Result<PathBuf, FileError> {
        let Some(parsed) = Id::model(id) else {
            let reason = "expected `owner/name` or `owner/name@revision`";
            return Err(FileError::Hub { model: id.into(), reason: reason.into() });
        };
        let found = self.obtain(id, &parsed)?;
        Ok(parsed.file.map_or(found.folder.clone(), |file| found.folder.join(file)))
    }

    /// Downloads the settings and the tokenizer of a model, but not its weights, as far as the cache lacks
    /// them, and returns its folder in the cache. An adapter, or a GGUF file, is downloaded whole.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub fn download_settings(&self, id: &str) -> Result<PathBuf, FileError> {
        match (Id::model(id), &self.cache) {
            (Some(parsed), Some(cache)) if parsed.file.is_none() && !self.offline => {
                // What the cache has is taken where the hub cannot be reached.
                self.fetch(&parsed, cache, false)
                    .map(|found| found.folder)
                    .or_else(|_| self.download(id))
            }
            _ => self.download(id),
        }
    }

    /// Downloads the files of a part of a dataset, `owner/name`, `owner/name@revision`, or either with
    /// `:split` (default: `train`) or `/file` after it. Returns their paths in the cache.
    ///
    /// The files of a split are those with its name in their path (`data/train-00000-of-00002.parquet`,
    /// `dev.jsonl`), as `datasets` finds them; without such names all files are `train`.
    ///
    /// # Errors
    /// As [`download`](Self::download), and [`FileError::Hub`] for a split that is not there.
    pub fn download_data(&self, id: &str) -> Result<Vec<PathBuf>, FileError> {
        let Some(parsed) = Id::dataset(id) else {
            let reason = "expected `owner/name`, `owner/name:split` or `owner/name/file`";
            return Err(FileError::Hub { model: id.into(), reason: reason.into() });
        };
        let found = self.obtain(id, &parsed)?;
        Ok(found.files.iter().map(|file| found.folder.join(file)).collect())
    }

    fn obtain(&self, id: &str, parsed: &Id<'_>) -> Result<Found, FileError> {
        let failed = |reason| FileError::Hub { model: id.into(), reason };
        let Some(cache) = &self.cache else {
            return Err(failed("there is no home directory to cache it in: set HF_HOME".into()));
        };
        let kept = || in_cache(cache, parsed);
        if self.offline {
            let add = |reason| failed(format!("{reason}; HF_HUB_OFFLINE is set: unset it"));
            return kept().map_err(add);
        }
        self.fetch(parsed, cache, true).or_else(|reason| {
            let found = kept().map_err(|_| failed(reason.clone()))?;
            crate::warn!("{id}: {reason}; using what is in the cache");
            Ok(found)
        })
    }

    /// Obtains the files that an id stands for; without `weights`, all but those of a model.
    fn fetch(&self, id: &Id<'_>, cache: &Path, weights: bool) -> Result<Found, String> {
        let cache = Cache::new(cache.to_owned());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.trim_end_matches('/').into())
            .with_token(self.token.clone())
            .with_user_agent("burn-lora", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.reason(id, &error))?;
        let repo = repo(id, id.revision);
        let info = api.repo(repo.clone()).info().map_err(|error| self.reason(id, &error))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(format!("{} names no commit", self.endpoint));
        }
        // All files are those of one commit, whatever is pushed meanwhile.
        let folder = cache.repo(repo.clone()).pointer_path(&commit);
        let source = api.repo(self::repo(id, &commit));
        let get = |file: &str| {
            self.file(id, &source, &folder, file)?;
            Ok(folder.join(file))
        };
        let names = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let mut files = select::files(id, &names, &get)?;
        if !weights {
            files.retain(|file| !select::is_weights(file));
        }
        files.iter().try_for_each(|file| get(file).map(drop))?;
        if !weights {
            // The commit is not in use before it is complete.
            return Ok(Found { folder, files });
        }
        // Written last, so that an interrupted download leaves the previous commit in use.
        let written = cache.repo(repo).create_ref(&commit);
        written.map_err(|error| format!("{}: {error}", cache.path().display()))?;
        Ok(Found { folder, files })
    }

    /// Downloads a file, unless it is cached.
    fn file(
        &self,
        id: &Id<'_>,
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
            .map(|_| files.download_with_progress(file, Download { work: None, size: &size }));
        let path = loop {
            match tries.next() {
                Some(Ok(path)) => break path,
                Some(Err(error)) if status(&error).is_some() || tries.len() == 0 => {
                    return Err(format!("{file}: {}", self.reason(id, &error)));
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

    /// The reason of an error, and how to fix it.
    fn reason(&self, id: &Id<'_>, error: &ApiError) -> String {
        let Self { endpoint, .. } = self;
        let Id { name, revision, .. } = id;
        match (status(error), error) {
            (Some(status @ (401 | 403)), _) => format!(
                "{endpoint} refused ({status}): it does not exist, or is private or gated. Accept its \
                 terms at {endpoint}/{name}, and set HF_TOKEN or log in (`burn-lora login`, `hf auth \
                 login`)"
            ),
            (Some(404), _) => {
                let what = what(id.kind);
                format!("{endpoint} has no such {what}, or it has no revision `{revision}`")
            }
            (_, ApiError::LockAcquisition(path)) => {
                format!("another process downloads it, and holds {}", path.display())
            }
            _ => format!("{endpoint}: {error}, and the cache does not have all of it"),
        }
    }
}

/// A repository in the cache.
struct Found {
    /// Folder of the commit.
    folder: PathBuf,
    /// Files that the id stands for, in it.
    files: Vec<String>,
}

fn what(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "model",
        Kind::Dataset => "dataset",
    }
}

fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn repo(id: &Id<'_>, revision: &str) -> Repo {
    let kind = match id.kind {
        Kind::Model => RepoType::Model,
        Kind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(id.name.into(), kind, revision.into())
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

/// Returns what is completely cached; the error says what is missing.
fn in_cache(cache: &Path, id: &Id<'_>) -> Result<Found, String> {
    let folder = cache.join(repo(id, id.revision).folder_name());
    let reference = folder.join("refs").join(id.revision);
    let wrong = |reason: String| Err(format!("{}: {reason}", reference.display()));
    let commit = match crate::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => id.revision.to_owned(),
        Err(error) => return wrong(error.to_string()),
    };
    // A path could lead out of the cache.
    if commit != id.revision && !is_commit(&commit) {
        return wrong(format!("`{}` is no commit: remove the file", brief(&commit)));
    }
    let folder = folder.join("snapshots").join(commit);
    let mut names = BTreeSet::new();
    list(&folder, "", &mut names);
    let files = select::files(id, &names, &|file| Ok(folder.join(file)))
        .map_err(|reason| format!("the cache is not complete, {}: {reason}", folder.display()))?;
    match files.iter().find(|file| !names.contains(*file)) {
        Some(file) => Err(format!("{} is not in the cache", folder.join(file).display())),
        None => Ok(Found { folder, files }),
    }
}

/// Adds the names of the files in a folder and its subfolders; links to files count, as the cache
/// consists of them.
fn list(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), &format!("{prefix}{name}/"), names),
            _ if entry.path().exists() => drop(names.insert(format!("{prefix}{name}"))),
            _ => {}
        }
    }
}

/// Progress of a file; it also records the file's size.
struct Download<'a> {
    work: Option<Work>,
    size: &'a Cell<usize>,
}

impl Progress for Download<'_> {
    fn init(&mut self, size: usize, file: &str) {
        self.size.set(size);
        self.work = Some(Work::bytes(format!("downloading {file}"), size as u64));
    }

    fn update(&mut self, bytes: usize) {
        if let Some(work) = &self.work {
            work.advance(bytes as u64);
        }
    }

    fn finish(&mut self) {
        self.work = None;
    }
}
