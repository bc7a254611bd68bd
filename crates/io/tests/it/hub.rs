//! Uploads, accounts and data, with a server that answers as huggingface.co does.

use crate::server::{Files, PART, Server, TOKEN};
use burn_lora_io::{
    FileError,
    hub::{DataFile, Hub, Upload},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn hub(server: &Server, home: &Path) -> Hub {
    Hub::from_env()
        .offline(false)
        .cache(home.join("hub"))
        .token_file(home.join("token"))
        .endpoint(&server.endpoint)
        .token(Some(TOKEN.to_owned()))
}

fn files(names: &[&str]) -> Files {
    names
        .iter()
        .map(|name| ((*name).to_owned(), format!("content of {name}").into_bytes()))
        .collect()
}

#[test]
fn what_is_pushed_is_what_is_there() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start([]);
    let hub = hub(&server, home.path());
    let weights: Vec<u8> = (0..3 * PART / 2).map(|i| (i * i % 251) as u8).collect();
    let path = home.path().join("weights");
    fs::write(&path, &weights).unwrap();
    let small = home.path().join("small");
    fs::write(&small, b"few bytes").unwrap();
    let upload = Upload::new("An adapter")
        .text("README.md", "# Ä card\n")
        .file("adapter_model.safetensors", &path)
        .file("copy/of.safetensors", &path)
        .file("small.safetensors", &small);
    let address = hub.push("owner/mine", &upload).unwrap();
    assert_eq!(address, format!("{}/owner/mine", server.endpoint));
    let there = server.files("models/owner/mine").unwrap();
    assert_eq!(there.len(), 4);
    assert_eq!(there["README.md"], "# Ä card\n".as_bytes());
    assert_eq!(there["adapter_model.safetensors"], weights);
    assert_eq!(there["copy/of.safetensors"], weights);
    assert_eq!(there["small.safetensors"], b"few bytes");
    let asked = server.asked();
    let stored = asked.iter().filter(|(path, _)| path.starts_with("/store/"));
    // Two parts, what joins them, and the small one; no token for the store, whose addresses are signed.
    let stored: Vec<_> = stored.collect();
    assert_eq!(stored.len(), 4, "{stored:?}");
    assert!(
        stored.iter().filter(|(path, _)| path.contains("?signature")).all(|(_, t)| t.is_empty())
    );

    // Once more: nothing large is sent again.
    hub.push("owner/mine", &upload).unwrap();
    assert!(server.asked().iter().all(|(path, _)| !path.starts_with("/store/")));
}

#[test]
fn refused_pushes_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start([]);
    let hub = hub(&server, home.path());
    let upload = Upload::new("x").text("README.md", "x");
    let push = |hub: &Hub, id: &str, upload: &Upload| hub.push(id, upload).unwrap_err().to_string();
    for (hub, id, upload, parts) in [
        (hub.clone(), "mine", &upload, ["expected `owner/name`", "mine"]),
        (hub.clone(), "other/mine", &upload, ["403", "the right to write"]),
        (hub.clone().token(Some("old".into())), "owner/mine", &upload, ["401", "log in again"]),
        (hub.clone().token(None), "owner/mine", &upload, ["no token", "burn-lora login"]),
        (hub.clone().offline(true), "owner/mine", &upload, ["HF_HUB_OFFLINE", "unset"]),
        (hub.clone(), "owner/mine", &Upload::new("x"), ["no files", "owner/mine"]),
        (
            hub.clone(),
            "owner/mine",
            &upload.clone().file("a", "no/such"),
            ["no/such", "No such file"],
        ),
    ] {
        let error = push(&hub, id, upload);
        assert!(parts.iter().all(|part| error.contains(part)), "{id}: {error}");
    }
    let gone = hub.endpoint("http://127.0.0.1:9");
    assert!(push(&gone, "owner/mine", &upload).contains("http://127.0.0.1:9"));
}

#[test]
fn a_login_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start([]);
    let hub = hub(&server, home.path());
    let file = home.path().join("token");
    for (token, part) in [("hf_wrong", "does not know this token"), ("", "hf_"), ("a b", "hf_")] {
        let error = hub.login(token).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!file.exists());
    }
    let user = hub.login(&format!("{TOKEN}\n")).unwrap();
    assert_eq!((user.name.as_str(), &user.file), ("owner", &file));
    assert_eq!(fs::read_to_string(&file).unwrap(), TOKEN);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

/// Downloads all files of a dataset.
fn all(hub: &Hub, id: &str) -> Result<Vec<PathBuf>, FileError> {
    hub.data(id)?.iter().map(|file| file.obtain().map(Path::to_owned)).collect()
}

#[test]
fn a_split_of_a_dataset_is_downloaded_file_by_file() {
    let home = tempfile::tempdir().unwrap();
    let names = ["data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl"];
    let server = Server::start([("datasets/owner/wine", files(&names))]);
    let hub = hub(&server, home.path());
    let offline = hub.clone().offline(true);
    let error = |hub: &Hub, id: &str| all(hub, id).unwrap_err().to_string();
    let listed = hub.data("owner/wine").unwrap();
    let text = |file: &DataFile| fs::read_to_string(file.obtain().unwrap()).unwrap();
    assert!(listed[0].path().starts_with(home.path().join("hub/datasets--owner--wine/snapshots")));
    assert!(!listed[0].path().exists());
    // A part of a split is not taken for all of it.
    assert_eq!(text(&listed[0]), "content of data/train-0.jsonl");
    assert!(!listed[1].path().exists());
    assert!(error(&offline, "owner/wine").contains("HF_HUB_OFFLINE"));
    assert_eq!(text(&listed[1]), "content of data/train-1.jsonl");
    // Without a network, what is in the cache.
    let paths: Vec<_> = listed.iter().map(|file| file.path().to_owned()).collect();
    assert_eq!(all(&offline, "owner/wine:train").unwrap(), paths);
    let said = error(&offline, "owner/wine:test");
    assert!(said.contains("no split `test`") && said.contains("HF_HUB_OFFLINE"), "{said}");
    assert_eq!(all(&hub, "owner/wine:test").unwrap().len(), 1);
    assert_eq!(all(&hub, "owner/wine/data/test-0.jsonl").unwrap().len(), 1);
    assert!(error(&hub, "owner/beer").contains("no such dataset"));
}

#[test]
fn a_configuration_of_a_dataset_is_downloaded() {
    let home = tempfile::tempdir().unwrap();
    let mut there = files(&["main/train.jsonl", "socratic/train.jsonl"]);
    let card = "---\nconfigs:\n- config_name: main\n  data_files: main/*\n\
                - config_name: socratic\n  data_files: socratic/*\n---\n";
    there.insert("README.md".into(), card.into());
    let server = Server::start([("datasets/owner/maths", there)]);
    let hub = hub(&server, home.path());
    let error = all(&hub, "owner/maths").unwrap_err().to_string();
    assert!(error.contains("`:main`"), "{error}");
    for hub in [hub.clone(), hub.offline(true)] {
        let paths = all(&hub, "owner/maths:socratic").unwrap();
        assert_eq!(fs::read_to_string(&paths[0]).unwrap(), "content of socratic/train.jsonl");
        assert_eq!((paths.len(), all(&hub, "owner/maths:socratic:train").unwrap()), (1, paths));
    }
}

#[test]
fn settings_are_downloaded_without_weights() {
    let home = tempfile::tempdir().unwrap();
    let model = ["config.json", "tokenizer.json", "model.safetensors"];
    let adapter = ["adapter_config.json", "adapter_model.safetensors"];
    let server = Server::start([
        ("models/owner/model", files(&model)),
        ("models/owner/lora", files(&adapter)),
    ]);
    let hub = hub(&server, home.path());
    let folder = hub.download_settings("owner/model").unwrap();
    assert!(folder.join("config.json").exists() && folder.join("tokenizer.json").exists());
    assert!(!folder.join("model.safetensors").exists());
    // It is no model that could be taken for a whole one.
    let error = hub.clone().offline(true).download("owner/model").unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(hub.download("owner/model").unwrap(), folder);
    assert!(folder.join("model.safetensors").exists());
    // An adapter is small.
    let folder = hub.download_settings("owner/lora").unwrap();
    assert!(folder.join("adapter_model.safetensors").exists());
}

#[test]
fn adapters_and_gguf_files_are_downloaded() {
    let home = tempfile::tempdir().unwrap();
    let adapter = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "x.bin"];
    let gguf = ["README.md", "a-Q4_K_M.gguf", "a-Q8_0.gguf"];
    let server = Server::start([
        ("models/owner/lora", files(&adapter)),
        ("models/owner/gguf", files(&gguf)),
    ]);
    let hub = hub(&server, home.path());
    let folder = hub.download("owner/lora").unwrap();
    for name in &adapter[..3] {
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), format!("content of {name}"));
    }
    assert!(!folder.join("x.bin").exists());
    assert_eq!(hub.clone().offline(true).download("owner/lora").unwrap(), folder);

    let path = hub.download("owner/gguf/a-Q8_0.gguf").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "content of a-Q8_0.gguf");
    assert!(!path.with_file_name("a-Q4_K_M.gguf").exists());
    let error = hub.download("owner/gguf").unwrap_err().to_string();
    assert!(error.contains("a-Q4_K_M.gguf") && error.contains("/FILE"), "{error}");
    let error = hub.download("owner/gguf/b.gguf").unwrap_err().to_string();
    assert!(error.contains("b.gguf is not there; there are `a-Q4_K_M.gguf`"), "{error}");
}

/// What we push, Python's own client downloads; what it uploads, we download.
#[test]
#[ignore = "needs BURN_LORA_PYTHON, a Python with huggingface_hub"]
fn pythons_client_agrees() {
    let python = std::env::var("BURN_LORA_PYTHON").expect("BURN_LORA_PYTHON names a Python");
    let home = tempfile::tempdir().unwrap();
    let server = Server::start([]);
    let hub = hub(&server, home.path());
    let weights: Vec<u8> = (0..PART + 7).map(|i| (i % 251) as u8).collect();
    fs::write(home.path().join("weights"), &weights).unwrap();
    let upload = Upload::new("An adapter")
        .text("README.md", "# A card\n")
        .text("adapter_config.json", "{}")
        .file("adapter_model.safetensors", home.path().join("weights"));
    hub.push("owner/ours", &upload).unwrap();
    let script = r##"
import pathlib, sys
from huggingface_hub import HfApi, snapshot_download
out = pathlib.Path(sys.argv[1])
folder = pathlib.Path(snapshot_download("owner/ours", local_dir=out / "down"))
assert (folder / "README.md").read_text() == "# A card\n"
assert (folder / "adapter_model.safetensors").read_bytes() == (out / "weights").read_bytes()
api = HfApi()
print(api.whoami()["name"])
api.create_repo("owner/theirs")
api.upload_folder(repo_id="owner/theirs", folder_path=folder, ignore_patterns=[".cache/*"])
"##;
    let ran = std::process::Command::new(python)
        .args(["-c", script, home.path().to_str().unwrap()])
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_TOKEN", TOKEN)
        .env("HF_HOME", home.path().join("python"))
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let folder = hub.download("owner/theirs").unwrap();
    assert_eq!(fs::read(folder.join("adapter_model.safetensors")).unwrap(), weights);
}
