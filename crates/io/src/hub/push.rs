//! Uploads to the hub.

use super::{
    api::{Api, ApiError},
    id::Id,
    select,
    settings::Hub,
};
use crate::{
    FileError,
    progress::{Counted, Work},
    shards::INDEX,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Files of a folder that are uploaded, but not downloaded.
const PUSHED: [&str; 5] = ["README.md", INDEX, "Modelfile", "loss.svg", "metrics.jsonl"];

/// Bytes of a file by which the hub decides how it is stored.
const SAMPLE: u64 = 512;

const LFS: &str = "application/vnd.git-lfs+json";

/// Content of a file to upload.
#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Text(String),
}

impl Content {
    /// Opens it; returns its size, too.
    fn open(&self) -> io::Result<(Box<dyn ReadSeek>, u64)> {
        Ok(match self {
            Self::File(path) => {
                let file: File = crate::open(path)?;
                let size = file.metadata()?.len();
                (Box::new(file), size)
            }
            Self::Text(text) => {
                (Box::new(io::Cursor::new(text.clone().into_bytes())), text.len() as u64)
            }
        })
    }
}

trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Files of one commit on the hub.
///
/// ```no_run
/// use burn_lora_io::hub::{Hub, Upload};
///
/// let upload = Upload::new("My adapter")
///     .file("adapter_config.json", "out/adapter_config.json")
///     .file("adapter_model.safetensors", "out/adapter_model.safetensors")
///     .text("README.md", "# My adapter\n")
///     .private(true);
/// let address = Hub::from_env().push("owner/name", &upload)?;
/// # Ok::<_, burn_lora_io::FileError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is uploaded before `Hub::push`"]
pub struct Upload {
    message: String,
    private: bool,
    files: BTreeMap<String, Content>,
}

impl Upload {
    /// Creates an upload without files. `message` is that of the commit.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), private: false, files: BTreeMap::new() }
    }

    /// Sets whether a repository that does not exist yet becomes a private one.
    pub fn private(mut self, private: bool) -> Self {
        self.private = private;
        self
    }

    /// Adds a file under a name in the repository, such as `data/train.jsonl`.
    pub fn file(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.files.insert(name.into(), Content::File(path.into()));
        self
    }

    /// Adds the files of a model's or an adapter's folder: weights (safetensors, GGUF), settings, tokenizer, what
    /// a run leaves, and `README.md`. Returns how many of them are weights, too.
    ///
    /// # Errors
    /// [`FileError::Io`] if the folder cannot be read.
    pub fn folder(mut self, folder: &Path) -> Result<(Self, usize), FileError> {
        let mut weights = 0;
        for entry in fs::read_dir(folder).map_err(FileError::io(folder))? {
            let path = entry.map_err(FileError::io(folder))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let is_weights = name.ends_with(".safetensors") || name.ends_with(".gguf");
            let known = select::FILES.contains(&name) || PUSHED.contains(&name);
            if path.is_file() && (is_weights || known) {
                weights += usize::from(is_weights);
                self = self.file(name, &path);
            }
        }
        Ok((self, weights))
    }

    /// Adds a text under a name in the repository.
    pub fn text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.insert(name.into(), Content::Text(text.into()));
        self
    }

    /// Returns the names of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

/// A file that the hub stores outside its git repository.
struct Large {
    name: String,
    content: Content,
    sha256: String,
    size: u64,
}

impl Hub {
    /// Uploads files to the model repository `owner/name`, which is created if it does not exist, as
    /// one commit; `owner/name@branch` to another branch than `main`. What the hub has already is not
    /// sent again, so that an upload that broke off goes on. Returns the address of the repository.
    ///
    /// # Errors
    /// [`FileError::Io`] for a file that cannot be read; [`FileError::Hub`] for an invalid id, without
    /// a token, or if the hub refuses or cannot be reached.
    pub fn push(&self, id: &str, upload: &Upload) -> Result<String, FileError> {
        let failed = |reason: String| FileError::Hub { model: id.into(), reason };
        if upload.files.is_empty() {
            return Err(failed("there are no files to upload".into()));
        }
        let Id { name, revision, .. } = self.create_for(id, upload.private)?;
        let (api, refused) = (Api::new(self), |error: ApiError| failed(refusal(error)));

        let mut lines = vec![json!({
            "key": "header", "value": { "summary": upload.message, "description": "" },
        })];
        let mut large = vec![];
        let modes = modes(&api, &name, &revision, upload)
            .map_err(|error| error.into_file_error(&failed))?;
        for (file, content) in &upload.files {
            if modes.contains(file) {
                large.push(hashed(file, content)?);
                continue;
            }
            let bytes = whole(content)?;
            let content = BASE64_STANDARD.encode(bytes);
            let value = json!({ "content": content, "path": file, "encoding": "base64" });
            lines.push(json!({ "key": "file", "value": value }));
        }
        self.send(&api, &name, &large).map_err(|error| error.into_file_error(&failed))?;
        lines.extend(large.iter().map(|file| {
            let Large { name, sha256, size, .. } = file;
            let value = json!({ "path": name, "algo": "sha256", "oid": sha256, "size": size });
            json!({ "key": "lfsFile", "value": value })
        }));
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = api.url(&format!("api/models/{name}/commit/{}", encoded(&revision)));
        api.post(&url, "application/x-ndjson", &lines.concat()).map_err(refused)?;
        Ok(api.url(&name))
    }

    /// Creates the model repository `owner/name` if it does not exist; a branch after the name is that of a later
    /// [`push`](Self::push). So what is wrong with the id, the token or its rights shows before the
    /// files are there.
    ///
    /// # Errors
    /// [`FileError::Hub`], as [`push`](Self::push).
    pub fn create(&self, id: &str, private: bool) -> Result<(), FileError> {
        self.create_for(id, private).map(drop)
    }

    fn create_for(&self, id: &str, private: bool) -> Result<Id, FileError> {
        let failed = |reason: String| FileError::Hub { model: id.into(), reason };
        let parsed = Id::model(id).filter(|parsed| parsed.file.is_none());
        let wrong = || failed("expected `owner/name` or `owner/name@branch`".into());
        let parsed = parsed.ok_or_else(wrong)?;
        if self.token.is_none() {
            let reason = "there is no token: log in (`burn-lora login`) or set HF_TOKEN";
            return Err(failed(reason.into()));
        }
        if self.offline {
            return Err(failed("HF_HUB_OFFLINE is set: unset it".into()));
        }
        let created = create(&Api::new(self), &parsed.name, private);
        created.map_err(|error| failed(refusal(error)))?;
        Ok(parsed)
    }

    /// Sends the large files that the hub does not have yet.
    fn send(&self, api: &Api<'_>, name: &str, files: &[Large]) -> Result<(), PushError> {
        if files.is_empty() {
            return Ok(());
        }
        let objects = files.iter().map(|file| json!({ "oid": file.sha256, "size": file.size }));
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "objects": objects.collect::<Vec<_>>(),
        });
        let url = api.url(&format!("{name}.git/info/lfs/objects/batch"));
        let answer = api.post(&url, LFS, &body.to_string())?;
        let objects = answer["objects"].as_array().cloned().unwrap_or_default();
        let mut sent = HashSet::new();
        for file in files.iter().filter(|file| sent.insert(file.sha256.clone())) {
            let object = objects.iter().find(|object| object["oid"] == *file.sha256);
            let object = object.ok_or_else(|| {
                PushError::Refused(format!("{url} says nothing about {}", file.name))
            })?;
            if let Some(error) = object["error"]["message"].as_str() {
                return Err(PushError::Refused(format!("{}: {error}", file.name)));
            }
            let actions = &object["actions"];
            // The hub has it.
            if actions["upload"].is_null() {
                continue;
            }
            self.send_file(api, file, &actions["upload"])?;
            if let Some(verify) = actions["verify"]["href"].as_str() {
                let body = json!({ "oid": file.sha256, "size": file.size });
                api.post(verify, LFS, &body.to_string())?;
            }
        }
        Ok(())
    }

    fn send_file(&self, api: &Api<'_>, file: &Large, action: &Value) -> Result<(), PushError> {
        let href = action["href"].as_str().unwrap_or_default();
        let header = action["header"].as_object().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let (mut content, _) = file.content.open().map_err(PushError::io(&file.content))?;
        let work = Work::bytes(format!("uploading {}", file.name), file.size);
        // Parts of a large file are sent one by one, each to an address of its own.
        let Some(chunk) = header.get("chunk_size").and_then(|size| text(size).parse::<u64>().ok())
        else {
            let headers: Vec<_> =
                header.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            let body = Counted::new(content.take(file.size), &work);
            api.put(href, &headers, file.size, body)?;
            return Ok(());
        };
        let mut parts: Vec<(u64, String)> = header
            .iter()
            .filter_map(|(number, url)| Some((number.parse().ok()?, text(url))))
            .collect();
        parts.sort();
        let mut etags = vec![];
        for (i, (number, url)) in parts.iter().enumerate() {
            let from = i as u64 * chunk;
            let length = chunk.min(file.size.saturating_sub(from));
            content.seek(SeekFrom::Start(from)).map_err(PushError::io(&file.content))?;
            let body = Counted::new((&mut content).take(length), &work);
            let etag = api.put(url, &[], length, body)?;
            etags.push(json!({ "partNumber": number, "etag": etag }));
        }
        api.post(href, LFS, &json!({ "oid": file.sha256, "parts": etags }).to_string())?;
        Ok(())
    }
}

/// Creates the repository, unless it exists.
fn create(api: &Api<'_>, name: &str, private: bool) -> Result<(), ApiError> {
    let (owner, model) = name.split_once('/').unwrap_or_default();
    let body = json!({
        "name": model, "organization": owner, "type": "model", "private": private,
    });
    match api.post(&api.url("api/repos/create"), "application/json", &body.to_string()) {
        Err(error) if error.status == Some(409) => Ok(()),
        // One may write to a repository of others without being allowed to create it.
        Err(error) if error.status == Some(403) => {
            api.get(&format!("api/models/{name}")).map(drop).map_err(|_| error)
        }
        other => other.map(drop),
    }
}

/// Asks the hub which files it stores outside the git repository.
fn modes(
    api: &Api<'_>,
    name: &str,
    revision: &str,
    upload: &Upload,
) -> Result<HashSet<String>, PushError> {
    let mut files = vec![];
    for (path, content) in &upload.files {
        let (content_read, size) = content.open().map_err(PushError::io(content))?;
        let mut sample = vec![];
        content_read.take(SAMPLE).read_to_end(&mut sample).map_err(PushError::io(content))?;
        let sample = BASE64_STANDARD.encode(sample);
        files.push(json!({ "path": path, "sample": sample, "size": size }));
    }
    let url = api.url(&format!("api/models/{name}/preupload/{}", encoded(revision)));
    let answer = api.post(&url, "application/json", &json!({ "files": files }).to_string())?;
    let answered = answer["files"].as_array().cloned().unwrap_or_default();
    let large = answered.iter().filter(|file| file["uploadMode"] == "lfs");
    Ok(large.filter_map(|file| file["path"].as_str().map(str::to_owned)).collect())
}

/// A revision in an address.
fn encoded(revision: &str) -> String {
    revision.replace('/', "%2F")
}

fn whole(content: &Content) -> Result<Vec<u8>, FileError> {
    let read = content.open().and_then(|(mut file, _)| {
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map(|_| bytes)
    });
    read.map_err(|source| FileError::Io { path: path(content), source })
}

fn hashed(name: &str, content: &Content) -> Result<Large, FileError> {
    let read = content.open().and_then(|(mut file, _)| {
        let mut hash = Sha256::new();
        let size = io::copy(&mut file, &mut hash)?;
        Ok((hash.finalize(), size))
    });
    let (hash, size) = read.map_err(|source| FileError::Io { path: path(content), source })?;
    let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Large { name: name.to_owned(), content: content.clone(), sha256, size })
}

fn path(content: &Content) -> PathBuf {
    match content {
        Content::File(path) => path.clone(),
        Content::Text(_) => Path::new("text").to_owned(),
    }
}

/// Error of an upload: of a file here, or of the hub.
enum PushError {
    Io(FileError),
    Refused(String),
}

impl PushError {
    fn io(content: &Content) -> impl FnOnce(io::Error) -> Self {
        let path = path(content);
        move |source| Self::Io(FileError::Io { path, source })
    }

    fn into_file_error(self, failed: &dyn Fn(String) -> FileError) -> FileError {
        match self {
            Self::Io(error) => error,
            Self::Refused(reason) => failed(reason),
        }
    }
}

impl From<ApiError> for PushError {
    fn from(error: ApiError) -> Self {
        Self::Refused(refusal(error))
    }
}

/// The reason of an error, and how to fix it.
fn refusal(error: ApiError) -> String {
    let ApiError { status, reason } = error;
    match status {
        Some(401) => format!("{reason}: the token is not valid any more: log in again"),
        Some(403) => format!(
            "{reason}: the token may not write there: make one with the right to write, and log in with \
             it"
        ),
        _ => reason,
    }
}
