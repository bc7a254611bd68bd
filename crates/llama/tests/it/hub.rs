//! Models by their id: from the cache, and from a server that answers as huggingface.co does.

use crate::common::*;
use burn_lora_llama::{Llama, hub::resolve};

#[test]
fn what_exists_or_is_no_id_is_a_path() {
    for path in ["../../testdata/gqa", "no/such/folder", "models", "a/b.gguf"] {
        assert_eq!(resolve(path, false).unwrap().to_str(), Some(path));
    }
}

#[cfg(not(feature = "hub"))]
#[test]
fn an_id_asks_for_the_feature() {
    let error = Llama::from_pretrained("owner/name").load(&device()).unwrap_err().to_string();
    assert!(error.contains("owner/name") && error.contains("feature `hub`"), "{error}");
}

#[cfg(feature = "hub")]
mod with_feature {
    use super::*;
    use burn_lora_llama::hub::Hub;
    use serde_json::json;
    use std::{
        collections::BTreeMap,
        fs,
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        path::Path,
        sync::{Arc, Mutex},
        thread,
    };

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// The files of a folder that a repository would have.
    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: BTreeMap<_, _> = entries
            .filter(|path| path.is_file())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        files.insert("tokenizer.json".into(), b"{}".to_vec());
        files.insert("pytorch_model.bin".into(), b"not to be downloaded".to_vec());
        files
    }

    /// A hub with one model, `owner/tiny`.
    struct Server {
        endpoint: String,
        /// The paths that were asked for, with the token.
        asked: Arc<Mutex<Vec<(String, String)>>>,
    }

    impl Server {
        fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let asked = Arc::new(Mutex::new(vec![]));
            let (log, own) = (asked.clone(), endpoint.clone());
            thread::spawn(move || {
                let mut broken = false;
                for stream in listener.incoming() {
                    answer(stream.unwrap(), &files, &own, &log, &mut broken);
                }
            });
            Self { endpoint, asked }
        }

        fn hub(&self, cache: &Path) -> Hub {
            let token = Some("secret".to_owned());
            Hub::from_env().offline(false).cache(cache).endpoint(&self.endpoint).token(token)
        }

        /// What was asked for since the last call.
        fn asked(&self) -> Vec<(String, String)> {
            std::mem::take(&mut *self.asked.lock().unwrap())
        }
    }

    /// Answers one request. The first whole answer with weights is cut off.
    fn answer(
        mut stream: TcpStream,
        files: &BTreeMap<String, Vec<u8>>,
        endpoint: &str,
        log: &Mutex<Vec<(String, String)>>,
        broken: &mut bool,
    ) {
        let lines: Vec<String> = BufReader::new(&stream)
            .lines()
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        let Some(first) = lines.first() else { return };
        let header = |name: &str| {
            let found = lines[1..].iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            });
            found.unwrap_or_default().to_owned()
        };
        let path = first.split(' ').nth(1).unwrap().to_owned();
        log.lock().unwrap().push((path.clone(), header("authorization")));

        let (mut head, mut body) = ("404 Not Found".to_owned(), vec![]);
        let mut sent = usize::MAX;
        if path.starts_with("/api/models/owner/gated/") {
            head = "403 Forbidden".into();
        } else if path.starts_with("/api/models/owner/private/") {
            head = "401 Unauthorized".into();
        } else if path == "/api/models/owner/tiny/revision/main" {
            let siblings = files.keys().map(|name| json!({ "rfilename": name }));
            let siblings: Vec<_> = siblings.collect();
            (head, body) = (
                "200 OK".into(),
                json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes(),
            );
        } else if let Some(name) = path.strip_prefix(&format!("/owner/tiny/resolve/{COMMIT}/")) {
            let file = &files[name];
            let facts = format!("ETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}");
            if name.ends_with(".safetensors") {
                // Large files lie elsewhere.
                head = format!(
                    "302 Found\r\nX-Linked-ETag: \"etag-{name}\"\r\n{facts}\r\n\
                     Location: {endpoint}/cdn/{name}"
                );
            } else {
                (head, body) = part(file, &header("range"));
                head = format!("{head}\r\n{facts}");
            }
        } else if let Some(name) = path.strip_prefix("/cdn/") {
            (head, body) = part(&files[name], &header("range"));
            if body.len() > 1 && !std::mem::replace(broken, true) {
                sent = body.len() / 2;
            }
        }
        let length = body.len();
        body.truncate(sent);
        let head =
            format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok();
    }

    fn part(file: &[u8], range: &str) -> (String, Vec<u8>) {
        let range = range.strip_prefix("bytes=").unwrap_or("0-");
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let end = to.parse().map_or(file.len(), |to: usize| (to + 1).min(file.len()));
        let range = format!("bytes {from}-{}/{}", end.saturating_sub(1), file.len());
        (format!("206 Partial Content\r\nContent-Range: {range}"), file[from..end].to_vec())
    }

    fn gone(cache: &Path) -> Hub {
        // Nobody listens at a port that was just given back.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Hub::from_env().offline(false).cache(cache).endpoint(format!("http://{port}")).token(None)
    }

    #[test]
    fn a_model_is_downloaded_once() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(files(&golden("families/linear")));
        let hub = server.hub(cache.path());
        let folder = hub.download("owner/tiny").unwrap();
        assert!(folder.ends_with(format!("models--owner--tiny/snapshots/{COMMIT}")));
        let whole = fs::read(golden("families/linear/model.safetensors")).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), whole);
        assert!(folder.join("tokenizer.json").exists());
        assert!(!folder.join("pytorch_model.bin").exists());
        Llama::from_pretrained(&folder).load(&device()).unwrap();
        let asked = server.asked();
        assert!(asked.iter().all(|(path, token)| match path.starts_with("/cdn/") {
            true => path.ends_with("safetensors"),
            false => token == "Bearer secret",
        }));

        // From now on only the commit is asked for, and without a network not even that.
        assert_eq!(hub.download("owner/tiny").unwrap(), folder);
        assert_eq!(server.asked().len(), 1);
        let names = ["owner/tiny".to_owned(), format!("owner/tiny@{COMMIT}")];
        for name in names {
            assert_eq!(hub.clone().offline(true).download(&name).unwrap(), folder);
            assert_eq!(gone(cache.path()).download(&name).unwrap(), folder);
        }
        assert!(server.asked().is_empty());
    }

    #[test]
    fn shards_are_downloaded() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(files(&golden("gqa/sharded")));
        let folder = server.hub(cache.path()).download("owner/tiny").unwrap();
        Llama::from_pretrained(&folder).load(&device()).unwrap();
        assert!(folder.join("generation_config.json").exists());
        // One that is lost is downloaded again, and missed without a network.
        let shard = folder.join("model-00004-of-00007.safetensors");
        fs::remove_file(&shard).unwrap();
        let error =
            gone(cache.path()).offline(true).download("owner/tiny").unwrap_err().to_string();
        assert!(error.contains(shard.to_str().unwrap()), "{error}");
        let error = gone(cache.path()).download("owner/tiny").unwrap_err().to_string();
        assert!(error.contains("owner/tiny") && error.contains("http://127.0.0.1"), "{error}");
        assert_eq!(server.hub(cache.path()).download("owner/tiny").unwrap(), folder);
        assert!(shard.exists());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let cache = tempfile::tempdir().unwrap();
        let mut some = files(&golden("families/linear"));
        some.remove("model.safetensors");
        let server = Server::start(some);
        let cases = [
            ("owner/gated", "HF_TOKEN"),
            ("owner/gated", "403"),
            ("owner/private", "huggingface-cli login"),
            ("owner/other", "no such model"),
            ("owner/tiny@v2", "no revision `v2`"),
            ("owner/tiny", "neither model.safetensors nor"),
            ("tiny", "expected `owner/name`"),
            ("../x", "expected `owner/name`"),
        ];
        for (id, expected) in cases {
            let error = server.hub(cache.path()).download(id).unwrap_err().to_string();
            assert!(error.contains(id) && error.contains(expected), "{error}");
        }
        assert!(fs::read_dir(cache.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_cache_that_python_made_is_read() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--owner--name");
        let snapshot = model.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), COMMIT).unwrap();
        let hub = Hub::from_env().cache(cache.path()).offline(true);
        let files = ["config.json", "model.safetensors"];
        for file in files {
            let error = hub.download("owner/name").unwrap_err().to_string();
            assert!(error.contains(file) && error.contains("HF_HUB_OFFLINE"), "{error}");
            fs::copy(golden("families/linear").join(file), snapshot.join(file)).unwrap();
        }
        let folder = hub.download("owner/name").unwrap();
        Llama::from_pretrained(folder).load(&device()).unwrap();
        hub.download("owner/name@dev").unwrap_err();
        // An index beside it does not count, as in transformers.
        let index = snapshot.join("model.safetensors.index.json");
        fs::write(index, json!({ "weight_map": { "x": "gone.safetensors" } }).to_string()).unwrap();
        hub.download("owner/name").unwrap();
    }

    #[test]
    fn a_reference_does_not_lead_out_of_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--owner--name");
        // Whole models outside `snapshots`.
        for folder in [model.join("elsewhere"), model.join("snapshots").join("a.b")] {
            fs::create_dir_all(&folder).unwrap();
            for file in ["config.json", "model.safetensors"] {
                fs::copy(golden("families/linear").join(file), folder.join(file)).unwrap();
            }
        }
        fs::create_dir_all(model.join("refs")).unwrap();
        let reference = model.join("refs/main");
        let absolute = golden("families/linear");
        let absolute = fs::canonicalize(absolute).unwrap();
        let texts =
            ["../elsewhere", "..", ".", "a.b", "", "\n", absolute.to_str().unwrap(), "\u{7}"];
        for text in texts {
            fs::write(&reference, text).unwrap();
            let hub = Hub::from_env().cache(cache.path()).offline(true);
            let error = hub.download("owner/name").unwrap_err().to_string();
            assert!(error.contains("refs/main") && error.contains("no commit"), "{text}: {error}");
        }
        fs::write(&reference, [0xff]).unwrap();
        let hub = Hub::from_env().cache(cache.path()).offline(true);
        let error = hub.download("owner/name").unwrap_err().to_string();
        assert!(error.contains("refs/main"), "{error}");
    }

    #[test]
    fn all_chat_templates_are_downloaded() {
        let cache = tempfile::tempdir().unwrap();
        let mut all = files(&golden("families/linear"));
        for name in ["tool_use.jinja", "../up.jinja", ".hidden.jinja", "notes.txt"] {
            all.insert(format!("additional_chat_templates/{name}"), b"{{ messages }}".to_vec());
        }
        let server = Server::start(all);
        let folder = server.hub(cache.path()).download("owner/tiny").unwrap();
        let names = fs::read_dir(folder.join("additional_chat_templates")).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["tool_use.jinja"]);
    }
}
