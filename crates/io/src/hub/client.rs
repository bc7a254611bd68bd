//! Downloads from the hub, and its cache.

use super::{
    data_file::DataFile,
    id::Id,
    listing::{Listing, Remote, is_commit, repo},
    select,
    settings::Hub,
};
use crate::{FileError, brief};
use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How much of what an id stands for is downloaded at once.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    All,
    /// All but the weights of a model.
    Settings,
    /// Nothing yet.
    Names,
}

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
        let found = self.obtain(id, &parsed, Part::All)?;
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
                self.fetch(&parsed, cache, Part::Settings)
                    .map(|found| found.folder)
                    .or_else(|_| self.download(id))
            }
            _ => self.download(id),
        }
    }

    /// Returns the files of a part of a dataset: `owner/name` or `owner/name@revision`, with `:split`
    /// (default: `train`), `:configuration`, `:configuration:split` or `/file` after it. Each is
    /// downloaded when it is asked for.
    ///
    /// Configurations and their files are those that the front matter of the dataset's `README.md` names
    /// (`configs`), as for `datasets`. Without it, the files of a split are those with its name in their
    /// path (`data/train-00000-of-00002.parquet`, `dev.jsonl`); without such names all files are `train`.
    ///
    /// # Errors
    /// As [`download`](Self::download), and [`FileError::Hub`] for a configuration or a split that is not
    /// there, and for several configurations of which none is named or marked as the default.
    pub fn data(&self, id: &str) -> Result<Vec<DataFile>, FileError> {
        let Some(parsed) = Id::dataset(id) else {
            let reason = "expected `owner/name`, `owner/name:configuration`, `owner/name:split`, \
                          `owner/name:configuration:split` or `owner/name/file`";
            return Err(FileError::Hub { model: id.into(), reason: reason.into() });
        };
        let Found { folder, files, listing } = self.obtain(id, &parsed, Part::Names)?;
        let file = |file: String| match &listing {
            None => folder.join(file).into(),
            Some(listing) => DataFile::remote(folder.join(&file), Remote::new(listing, id, file)),
        };
        Ok(files.into_iter().map(file).collect())
    }

    fn obtain(&self, id: &str, parsed: &Id, part: Part) -> Result<Found, FileError> {
        let failed = |reason| FileError::Hub { model: id.into(), reason };
        let Some(cache) = &self.cache else {
            return Err(failed("there is no home directory to cache it in: set HF_HOME".into()));
        };
        let kept = || in_cache(cache, parsed);
        if self.offline {
            let add = |reason| failed(format!("{reason}; HF_HUB_OFFLINE is set: unset it"));
            return kept().map_err(add);
        }
        self.fetch(parsed, cache, part).or_else(|reason| {
            let found = kept().map_err(|_| failed(reason.clone()))?;
            crate::warn!("{id}: {reason}; using what is in the cache");
            Ok(found)
        })
    }

    /// Obtains files that an id stands for from the hub.
    fn fetch(&self, id: &Id, cache: &Path, part: Part) -> Result<Found, String> {
        let listing = Listing::new(self, id, cache)?;
        let mut files = listing.files.clone();
        match part {
            Part::All => {}
            Part::Settings => files.retain(|file| !select::is_weights(file)),
            Part::Names => files.clear(),
        }
        files.iter().try_for_each(|file| listing.get(file).map(drop))?;
        if part == Part::All {
            listing.put_in_use()?;
        }
        Ok(Found {
            folder: listing.folder.clone(),
            files: listing.files.clone(),
            listing: Some(Arc::new(listing)),
        })
    }
}

/// A repository in the cache.
struct Found {
    /// Folder of the commit.
    folder: PathBuf,
    /// Files that the id stands for, in it.
    files: Vec<String>,
    /// Where they come from, unless all are there.
    listing: Option<Arc<Listing>>,
}

/// Returns what is completely cached; the error says what is missing.
fn in_cache(cache: &Path, id: &Id) -> Result<Found, String> {
    let folder = cache.join(repo(id, &id.revision).folder_name());
    let reference = folder.join("refs").join(&id.revision);
    let wrong = |reason: String| Err(format!("{}: {reason}", reference.display()));
    let commit = match crate::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => id.revision.clone(),
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
        None => Ok(Found { folder, files, listing: None }),
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
