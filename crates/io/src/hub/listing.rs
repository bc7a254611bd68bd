//! What an id stands for on the hub, at one commit, and the download of single files.

use super::{
    id::{Id, Kind},
    select,
    settings::Hub,
};
use crate::{FileError, progress::Work};
use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiError, ApiRepo},
    },
};
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Attempts at downloading a file if the connection breaks; each resumes where the last one ended.
const TRIES: usize = 3;

/// The files that an id stands for, of the commit that its revision was when the hub was asked: all are those of
/// one commit, whatever is pushed meanwhile.
pub(super) struct Listing {
    hub: Hub,
    id: Id,
    cache: Cache,
    source: ApiRepo,
    commit: String,
    /// Folder of the commit in the cache.
    pub folder: PathBuf,
    pub files: Vec<String>,
}

impl Listing {
    /// Asks the hub, and downloads what says which files are meant, such as the index of shards.
    pub fn new(hub: &Hub, id: &Id, cache: &Path) -> Result<Self, String> {
        let cache = Cache::new(cache.to_owned());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(hub.endpoint.trim_end_matches('/').into())
            .with_token(hub.token.clone())
            .with_user_agent("burn-lora", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| reason(hub, id, &error))?;
        let repo = repo(id, &id.revision);
        let info = api.repo(repo.clone()).info().map_err(|error| reason(hub, id, &error))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(format!("{} names no commit", hub.endpoint));
        }
        let folder = cache.repo(repo).pointer_path(&commit);
        let source = api.repo(self::repo(id, &commit));
        let (hub, id) = (hub.clone(), id.clone());
        let mut listing = Self { hub, id, cache, source, commit, folder, files: vec![] };
        let names = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        listing.files = select::files(&listing.id, &names, &|file| listing.get(file))?;
        Ok(listing)
    }

    /// Downloads a file, unless it is cached, and returns its path.
    pub fn get(&self, file: &str) -> Result<PathBuf, String> {
        let Self { hub, id, .. } = self;
        let expected = self.folder.join(file);
        if expected.exists() {
            return Ok(expected);
        }
        let size = Cell::new(0);
        let mut tries = (0..TRIES).map(|_| {
            self.source.download_with_progress(file, Download { work: None, size: &size })
        });
        let path = loop {
            match tries.next() {
                Some(Ok(path)) => break path,
                Some(Err(error)) if status(&error).is_some() || tries.len() == 0 => {
                    return Err(format!("{file}: {}", reason(hub, id, &error)));
                }
                Some(Err(_)) => {}
                None => unreachable!("the last try was returned"),
            }
        };
        if path != expected {
            return Err(format!("{file}: {} sent it of another commit", hub.endpoint));
        }
        let found = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if found != size.get() as u64 {
            // Otherwise the truncated file would be used from now on.
            let blob = fs::canonicalize(&path);
            blob.and_then(fs::remove_file).and_then(|()| fs::remove_file(&path)).ok();
            return Err(format!("{file}: {found} bytes came, of {}: try again", size.get()));
        }
        Ok(path)
    }

    /// Makes the commit the one that the cache has of this revision: once all files are there, so that an interrupted
    /// download leaves the previous commit in use.
    pub fn put_in_use(&self) -> Result<(), String> {
        let written = self.cache.repo(repo(&self.id, &self.id.revision)).create_ref(&self.commit);
        written.map_err(|error| format!("{}: {error}", self.cache.path().display()))
    }
}

/// A file of a listing, to be downloaded.
#[derive(Clone)]
pub(super) struct Remote {
    listing: Arc<Listing>,
    /// The id as it was written, for errors.
    id: String,
    file: String,
}

impl Remote {
    pub fn new(listing: &Arc<Listing>, id: &str, file: String) -> Self {
        Self { listing: listing.clone(), id: id.into(), file }
    }

    /// Downloads it, unless it is cached.
    pub fn obtain(&self) -> Result<(), FileError> {
        let Self { listing, id, file } = self;
        let got = listing.get(file).and_then(|_| {
            let all = listing.files.iter().all(|file| listing.folder.join(file).exists());
            if all { listing.put_in_use() } else { Ok(()) }
        });
        got.map_err(|reason| FileError::Hub { model: id.clone(), reason })
    }
}

/// The reason of an error, and how to fix it.
fn reason(hub: &Hub, id: &Id, error: &ApiError) -> String {
    let Hub { endpoint, .. } = hub;
    let Id { name, revision, .. } = id;
    match (status(error), error) {
        (Some(status @ (401 | 403)), _) => format!(
            "{endpoint} refused ({status}): it does not exist, or is private or gated. Accept its \
             terms at {endpoint}/{name}, and set HF_TOKEN or log in (`burn-lora login`, `hf auth \
             login`)"
        ),
        (Some(404), _) => {
            let what = match id.kind {
                Kind::Model => "model",
                Kind::Dataset => "dataset",
            };
            format!("{endpoint} has no such {what}, or it has no revision `{revision}`")
        }
        (_, ApiError::LockAcquisition(path)) => {
            format!("another process downloads it, and holds {}", path.display())
        }
        _ => format!("{endpoint}: {error}, and the cache does not have all of it"),
    }
}

pub(super) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit())
}

pub(super) fn repo(id: &Id, revision: &str) -> Repo {
    let kind = match id.kind {
        Kind::Model => RepoType::Model,
        Kind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(id.name.clone(), kind, revision.into())
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
