//! A server that answers as huggingface.co does: downloads, uploads, accounts.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// The commit of every repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The token of the only account.
pub const TOKEN: &str = "hf_secret";

/// Size of the parts of a large upload, and size from which a file is one.
pub const PART: usize = 200_000;

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct State {
    /// By `models/owner/name` or `datasets/owner/name`.
    repositories: BTreeMap<String, Files>,
    /// Large files by their hash, and parts of them by address.
    objects: BTreeMap<String, Vec<u8>>,
    /// What was asked for, with the token.
    asked: Vec<(String, String)>,
    /// `true` after the answer that was cut off.
    broken: bool,
}

/// A hub with repositories.
pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes after which the connection breaks.
    sent: usize,
}

impl Answer {
    fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![], body: body.into(), sent: usize::MAX }
    }

    fn json(value: Value) -> Self {
        Self::new("200 OK", value.to_string()).header("Content-Type", "application/json")
    }

    fn refused(status: &'static str, error: &str) -> Self {
        Self { status, ..Self::json(json!({ "error": error })) }
    }

    fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Server {
    /// Starts a hub at a free port. `repositories` are named `models/owner/name` or
    /// `datasets/owner/name`. The first whole answer with a large file is cut off.
    pub fn start(repositories: impl IntoIterator<Item = (&'static str, Files)>) -> Self {
        let repositories =
            repositories.into_iter().map(|(name, files)| (name.to_owned(), files)).collect();
        let state = Arc::new(Mutex::new(State { repositories, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (own, at) = (state.clone(), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, endpoint) = (own.clone(), at.clone());
                thread::spawn(move || serve(stream.unwrap(), &state, &endpoint));
            }
        });
        Self { endpoint, state }
    }

    /// What was asked for since the last call: paths with tokens.
    pub fn asked(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// Files of a repository.
    pub fn files(&self, repository: &str) -> Option<Files> {
        self.state.lock().unwrap().repositories.get(repository).cloned()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, endpoint: &str) {
    let Some(request) = read(&stream) else { return };
    let answer = {
        let mut state = state.lock().unwrap();
        let token = request.headers.get("authorization").cloned().unwrap_or_default();
        state.asked.push((request.path.clone(), token));
        answer(&request, &mut state, endpoint)
    };
    let Answer { status, headers, mut body, sent } = answer;
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "Connection: close\r\n\r\n";
    body.truncate(if request.method == "HEAD" { 0 } else { sent });
    let mut stream = stream;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok();
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn answer(request: &Request, state: &mut State, endpoint: &str) -> Answer {
    let path = request.path.split('?').next().unwrap().replace("%2F", "/");
    let path = path.trim_start_matches('/');
    let known = request
        .headers
        .get("authorization")
        .is_some_and(|sent| sent.strip_prefix("Bearer ") == Some(TOKEN));
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let words: Vec<&str> = path.split('/').collect();
    match (request.method.as_str(), &words[..]) {
        (_, ["api", _, "owner", "gated", ..]) => Answer::refused("403 Forbidden", "gated"),
        (_, ["api", _, "owner", "private", ..]) => Answer::refused("401 Unauthorized", "private"),
        (_, ["api", "whoami-v2"]) if known => {
            Answer::json(json!({ "name": "owner", "type": "user", "auth": {}, "orgs": [] }))
        }
        (_, ["api", "whoami-v2"]) => Answer::refused("401 Unauthorized", "Invalid user token."),
        ("POST", ["api", "validate-yaml"]) => Answer::json(json!({ "errors": [], "warnings": [] })),
        ("POST", ["api", ..]) if !known => Answer::refused("401 Unauthorized", "Invalid token."),
        ("POST", ["api", "repos", "create"]) => create(&body, state, endpoint),
        // There is one branch.
        ("POST", ["api", "models", _, _, "preupload" | "commit", branch]) if *branch != "main" => {
            Answer::refused("404 Not Found", "Invalid rev id")
        }
        ("POST", ["api", "models", owner, name, "preupload", ..]) => {
            match state.repositories.contains_key(&format!("models/{owner}/{name}")) {
                true => preupload(&body),
                false => Answer::refused("404 Not Found", "Repository not found"),
            }
        }
        ("POST", ["api", "models", owner, name, "commit", ..]) => {
            commit(&format!("models/{owner}/{name}"), &request.body, state, endpoint)
        }
        ("POST", [.., "info", "lfs", "objects", "batch"]) => batch(&body, state, endpoint),
        ("PUT", ["store", rest @ ..]) => {
            state.objects.insert(rest.join("/"), request.body.clone());
            Answer::new("200 OK", "").header("ETag", format!("\"{}\"", rest.join("-")))
        }
        ("POST", ["store", oid]) => complete(oid, &body, state),
        ("POST", ["verify"]) => {
            let oid = body["oid"].as_str().unwrap_or_default();
            match state.objects.get(oid).map(Vec::len) == body["size"].as_u64().map(|n| n as usize)
            {
                true => Answer::new("200 OK", "OK"),
                false => Answer::refused("404 Not Found", "no such object"),
            }
        }
        ("GET", ["api", kind, owner, name, "tree", ..]) => {
            let files = state.repositories.get(&format!("{kind}/{owner}/{name}"));
            let entry = |(name, content): (&String, &Vec<u8>)| json!({ "type": "file", "path": name, "size": content.len(), "oid": COMMIT });
            Answer::json(files.into_iter().flatten().map(entry).collect())
        }
        ("GET" | "HEAD", ["api", kind, owner, name, rest @ ..]) => {
            let id = format!("{owner}/{name}");
            match state.repositories.get(&format!("{kind}/{id}")) {
                Some(files) if rest.is_empty() || matches!(rest, ["revision", "main" | COMMIT]) => {
                    let siblings: Vec<_> =
                        files.keys().map(|name| json!({ "rfilename": name })).collect();
                    Answer::json(json!({
                        "id": id, "sha": COMMIT, "siblings": siblings, "private": false, "tags": [],
                        "downloads": 0,
                    }))
                }
                _ => Answer::refused("404 Not Found", "Repository not found"),
            }
        }
        ("GET" | "HEAD", ["cdn", kind, owner, name, file @ ..]) => {
            let (repository, name) = (format!("{kind}/{owner}/{name}"), file.join("/"));
            let file = &state.repositories[&repository][&name];
            let mut answer = part(file, request);
            if answer.body.len() > 1
                && request.method == "GET"
                && !std::mem::replace(&mut state.broken, true)
            {
                answer.sent = answer.body.len() / 2;
            }
            // The store is at the same host here, and Python's client takes it for the hub.
            let etag = format!("\"etag-{}\"", name.replace('/', "-"));
            answer.header("ETag", etag).header("X-Repo-Commit", COMMIT)
        }
        ("GET" | "HEAD", ["datasets", owner, name, "resolve", revision, file @ ..]) => {
            let repository = format!("datasets/{owner}/{name}");
            resolve(&repository, revision, &file.join("/"), request, state, endpoint)
        }
        ("GET" | "HEAD", [owner, name, "resolve", revision, file @ ..]) => {
            let repository = format!("models/{owner}/{name}");
            resolve(&repository, revision, &file.join("/"), request, state, endpoint)
        }
        _ => Answer::refused("404 Not Found", "no such page"),
    }
}

fn create(body: &Value, state: &mut State, endpoint: &str) -> Answer {
    let (owner, name) = (body["organization"].as_str(), body["name"].as_str().unwrap_or_default());
    let owner = owner.unwrap_or("owner");
    if owner != "owner" {
        return Answer::refused("403 Forbidden", "You don't have the rights to create a model");
    }
    let id = format!("{owner}/{name}");
    let (key, url) = (format!("models/{id}"), format!("{endpoint}/{id}"));
    if state.repositories.contains_key(&key) {
        let answer = json!({ "error": "You already created this model repo", "url": url });
        return Answer { status: "409 Conflict", ..Answer::json(answer) };
    }
    state.repositories.insert(key, Files::new());
    Answer::json(json!({ "url": url, "name": id, "id": COMMIT }))
}

fn preupload(body: &Value) -> Answer {
    let files = body["files"].as_array().cloned().unwrap_or_default().into_iter().map(|file| {
        let text = file["path"].as_str().unwrap_or_default();
        let large = text.ends_with(".safetensors") || file["size"].as_u64() > Some(PART as u64);
        json!({
            "path": text, "uploadMode": if large { "lfs" } else { "regular" },
            "shouldIgnore": false, "oid": null,
        })
    });
    Answer::json(json!({ "files": files.collect::<Vec<_>>() }))
}

fn batch(body: &Value, state: &State, endpoint: &str) -> Answer {
    let objects =
        body["objects"].as_array().cloned().unwrap_or_default().into_iter().map(|object| {
            let oid = object["oid"].as_str().unwrap_or_default();
            let size = object["size"].as_u64().unwrap_or_default() as usize;
            if state.objects.contains_key(oid) {
                return json!({ "oid": oid, "size": size });
            }
            let href = format!("{endpoint}/store/{oid}");
            let mut header = serde_json::Map::new();
            if size > PART {
                header.insert("chunk_size".into(), json!(PART.to_string()));
                for number in 1..=size.div_ceil(PART) {
                    header.insert(
                        format!("{number:05}"),
                        json!(format!("{href}/{number}?signature=x")),
                    );
                }
            }
            let verify = json!({ "href": format!("{endpoint}/verify") });
            let actions = json!({ "upload": { "href": href, "header": header }, "verify": verify });
            json!({ "oid": oid, "size": size, "actions": actions })
        });
    let objects: Vec<_> = objects.collect();
    let transfer =
        match objects.iter().any(|o| !o["actions"]["upload"]["header"]["chunk_size"].is_null()) {
            true => "multipart",
            false => "basic",
        };
    Answer::json(json!({ "transfer": transfer, "objects": objects }))
        .header("Content-Type", "application/vnd.git-lfs+json")
}

/// Joins the parts of a large file.
fn complete(oid: &str, body: &Value, state: &mut State) -> Answer {
    let mut whole = vec![];
    for part in body["parts"].as_array().into_iter().flatten() {
        let key = format!("{oid}/{}", part["partNumber"]);
        if part["etag"] != format!("\"{}\"", key.replace('/', "-")) {
            return Answer::refused("400 Bad Request", "wrong etag");
        }
        whole.extend(state.objects.remove(&key).unwrap_or_default());
    }
    state.objects.insert(oid.to_owned(), whole);
    Answer::json(json!({}))
}

fn commit(repository: &str, body: &[u8], state: &mut State, endpoint: &str) -> Answer {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let Some(files) = state.repositories.get_mut(repository) else {
        return Answer::refused("404 Not Found", "Repository not found");
    };
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        let line: Value = serde_json::from_slice(line).unwrap();
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str().unwrap() {
            "header" => assert!(value["summary"].as_str().is_some_and(|text| !text.is_empty())),
            "file" => {
                let content = BASE64_STANDARD.decode(value["content"].as_str().unwrap()).unwrap();
                files.insert(path, content);
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap();
                let Some(content) = state.objects.get(oid) else {
                    return Answer::refused("400 Bad Request", "no such object");
                };
                let hash = Sha256::digest(content);
                let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                if hash != oid {
                    return Answer::refused("400 Bad Request", "the object has another hash");
                }
                files.insert(path, content.clone());
            }
            other => panic!("key {other}"),
        }
    }
    let url = format!("{endpoint}/{}/commit/{COMMIT}", repository.trim_start_matches("models/"));
    Answer::json(
        json!({ "success": true, "commitOid": COMMIT, "commitUrl": url, "hookOutput": "" }),
    )
}

fn resolve(
    repository: &str,
    revision: &str,
    name: &str,
    request: &Request,
    state: &State,
    endpoint: &str,
) -> Answer {
    let found = state.repositories.get(repository).and_then(|files| files.get(name));
    let Some(file) = found.filter(|_| revision == COMMIT || revision == "main") else {
        return Answer::refused("404 Not Found", "Entry not found")
            .header("X-Error-Code", "EntryNotFound");
    };
    let etag = format!("\"etag-{}\"", name.replace('/', "-"));
    let answer = if name.ends_with(".safetensors") {
        // Large files lie elsewhere.
        Answer::new("302 Found", "")
            .header("X-Linked-ETag", etag.clone())
            .header("X-Linked-Size", file.len().to_string())
            .header("Location", format!("{endpoint}/cdn/{repository}/{name}"))
    } else {
        part(file, request)
    };
    answer.header("ETag", etag).header("X-Repo-Commit", COMMIT)
}

/// The part of a file that is asked for.
fn part(file: &[u8], request: &Request) -> Answer {
    let Some(range) = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="))
    else {
        return Answer::new("200 OK", file);
    };
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let end = to.parse().map_or(file.len(), |to: usize| (to + 1).min(file.len()));
    let range = format!("bytes {from}-{}/{}", end.saturating_sub(1), file.len());
    Answer::new("206 Partial Content", &file[from..end]).header("Content-Range", range)
}
