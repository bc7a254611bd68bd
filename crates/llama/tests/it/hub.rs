//! Models by their id: from the cache, and from a server that answers as huggingface.co does.

use crate::common::*;
use burn_lora_llama::{Llama, hub::resolve};

#[test]
fn what_exists_or_is_no_id_is_a_path() {
    for path in ["../../testdata/gqa", "no/such/folder", "models", "a/b.gguf"] {
        assert_eq!(resolve(path).unwrap().to_str(), Some(path));
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
    use crate::server::{COMMIT, Files, Server, TOKEN};
    use burn_lora_adapter::AdaptableExt;
    use burn_lora_llama::hub::Hub;
    use serde_json::json;
    use std::{fs, net::TcpListener, path::Path};

    const TINY: &str = "models/owner/tiny";

    /// The files of a folder that a repository would have.
    fn files(folder: &Path) -> Files {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Files = entries
            .filter(|path| path.is_file())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        files.insert("tokenizer.json".into(), b"{}".to_vec());
        files.insert("flax_model.msgpack".into(), b"not to be downloaded".to_vec());
        files
    }

    fn hub(server: &Server, cache: &Path) -> Hub {
        let token = Some(TOKEN.to_owned());
        Hub::from_env().offline(false).cache(cache).endpoint(&server.endpoint).token(token)
    }

    fn gone(cache: &Path) -> Hub {
        // Nobody listens at a port that was just given back.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Hub::from_env().offline(false).cache(cache).endpoint(format!("http://{port}")).token(None)
    }

    #[test]
    fn a_model_is_downloaded_once() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start([(TINY, files(&golden("families/linear")))]);
        let hub = hub(&server, cache.path());
        let folder = hub.download("owner/tiny").unwrap();
        assert!(folder.ends_with(format!("models--owner--tiny/snapshots/{COMMIT}")));
        let whole = fs::read(golden("families/linear/model.safetensors")).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), whole);
        assert!(folder.join("tokenizer.json").exists());
        assert!(!folder.join("flax_model.msgpack").exists());
        Llama::from_pretrained(&folder).load(&device()).unwrap();
        let asked = server.asked();
        assert!(asked.iter().all(|(path, token)| match path.starts_with("/cdn/") {
            true => path.ends_with("safetensors"),
            false => token == "Bearer hf_secret",
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
        let server = Server::start([(TINY, files(&golden("gqa/sharded")))]);
        let folder = hub(&server, cache.path()).download("owner/tiny").unwrap();
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
        assert_eq!(hub(&server, cache.path()).download("owner/tiny").unwrap(), folder);
        assert!(shard.exists());
    }

    #[test]
    fn refusals_say_what_to_do() {
        let cache = tempfile::tempdir().unwrap();
        let mut some = files(&golden("families/linear"));
        some.remove("model.safetensors");
        let server = Server::start([(TINY, some)]);
        let cases = [
            ("owner/gated", "HF_TOKEN"),
            ("owner/gated", "403"),
            ("owner/private", "burn-lora login"),
            ("owner/other", "no such model"),
            ("owner/tiny@v2", "no revision `v2`"),
            ("owner/tiny", "neither model.safetensors nor"),
            ("tiny", "expected `owner/name`"),
            ("../x", "expected `owner/name`"),
        ];
        for (id, expected) in cases {
            let error = hub(&server, cache.path()).download(id).unwrap_err().to_string();
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
        let server = Server::start([(TINY, all)]);
        let folder = hub(&server, cache.path()).download("owner/tiny").unwrap();
        let names = fs::read_dir(folder.join("additional_chat_templates")).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["tool_use.jinja"]);
    }

    #[test]
    fn files_of_pytorch_are_downloaded_where_there_are_no_others() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start([(TINY, files(&golden("torch/gqa")))]);
        let folder = hub(&server, cache.path()).download("owner/tiny").unwrap();
        Llama::from_pretrained(&folder).load(&device()).unwrap();
        assert_eq!(gone(cache.path()).download("owner/tiny").unwrap(), folder);
    }

    #[test]
    fn an_adapter_brings_its_base() {
        let cache = tempfile::tempdir().unwrap();
        let base = golden("gqa");
        let folder = |name: &str, revision: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                fs::copy(golden("gqa/lora_qv").join(file), folder.path().join(file)).unwrap();
            }
            let path = folder.path().join("adapter_config.json");
            let mut json: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            json["base_model_name_or_path"] = name.into();
            json["revision"] = revision.into();
            fs::write(path, json.to_string()).unwrap();
            folder
        };
        let mut expected = Llama::from_pretrained(&base).load(&device()).unwrap();
        expected.load_adapter("default", golden("gqa/lora_qv")).unwrap();
        let expected = logits(&expected);
        // A path, also with a revision, which only ids have.
        for revision in [None, Some("main")] {
            let adapter = folder(base.to_str().unwrap(), revision);
            let model = Llama::from_pretrained(adapter.path()).load(&device()).unwrap();
            assert_eq!(model.adapter_names(), ["default"]);
            assert_eq!(logits(&model), expected);
        }
        // Both by their ids.
        let adapter = folder("owner/tiny", Some("main"));
        let there = [(TINY, files(&base)), ("models/owner/lora", files(adapter.path()))];
        let server = Server::start(there);
        let hub = hub(&server, cache.path());
        let (lora, tiny) =
            (hub.download("owner/lora").unwrap(), hub.download("owner/tiny").unwrap());
        assert_eq!(burn_lora_io::base_of(&lora).unwrap(), Some("owner/tiny@main".into()));
        assert_eq!(burn_lora_io::base_of(&tiny).unwrap(), None);
        let mut model = Llama::from_pretrained(tiny).load(&device()).unwrap();
        model.load_adapter("default", lora).unwrap();
        assert_eq!(logits(&model), expected);

        let nameless = folder("", None);
        let error =
            Llama::from_pretrained(nameless.path()).load(&device()).unwrap_err().to_string();
        assert!(error.contains("base_model_name_or_path"), "{error}");
    }

    fn logits(model: &Llama) -> Vec<f32> {
        let (tokens, segments, _) = batch("gqa", &device());
        vec(model.forward(tokens, &segments))
    }
}
