//! Adapters that come and go while the server answers.

use super::*;

fn load(server: &Running, name: &str, folder: &Path) -> (u16, Value) {
    let body = json!({ "lora_name": name, "lora_path": folder });
    server.post("/v1/load_lora_adapter", &body)
}

fn names(server: &Running) -> Vec<String> {
    let (_, text) = server.get("/v1/models");
    let found: Value = serde_json::from_str(&text).unwrap();
    let names = found["data"].as_array().unwrap().iter();
    names.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn adapters_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [adapter(1, folder.path()), adapter(2, folder.path())];
    let config =
        ServeConfig { adapter_folders: vec![folder.path().to_owned()], ..ServeConfig::default() };
    let server = Running::start(config, &[("one", &adapters[0])]);
    let expected = [&adapters[0], &adapters[1]].map(|folder| alone(Some(folder), "x", 200).text);

    // A long answer goes on while another adapter comes and goes.
    let body = with(chat("one", "x", 200), json!({ "stream": true }));
    let mut events = server.stream("/v1/chat/completions", &body);
    let first = events.next().unwrap();
    let (status, said) = load(&server, "two", &adapters[1]);
    assert_eq!(
        (status, said.as_str()),
        (200, Some("Success: LoRA adapter 'two' added successfully."))
    );
    assert_eq!(names(&server), ["base", "one", "two"]);
    let found = server.ask("/v1/chat/completions", &chat("two", "x", 200));
    assert_eq!(found["choices"][0]["message"]["content"], expected[1]);
    for name in ["two", "one"] {
        let (status, _) = server.post("/v1/unload_lora_adapter", &json!({ "lora_name": name }));
        assert_eq!(status, 200);
    }
    assert_eq!(names(&server), ["base"]);
    let rest = std::iter::once(first).chain(events);
    let text = rest.filter_map(|event| {
        let event: Value = serde_json::from_str(&event).ok()?;
        event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    });
    assert_eq!(text.collect::<String>(), expected[0]);
    let (status, _) = server.post("/v1/chat/completions", &chat("one", "x", 2));
    assert_eq!(status, 404);
    // Again, under the name of another.
    assert_eq!(load(&server, "one", &adapters[1]).0, 200);
    let found = server.ask("/v1/chat/completions", &chat("one", "x", 200));
    assert_eq!(found["choices"][0]["message"]["content"], expected[1]);
    let (_, text) = server.get("/v1/models/one");
    let one: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&one["id"], &one["parent"]), (&"one".into(), &"base".into()));
}

#[test]
fn what_may_not_be_loaded() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (inside, outside) = (adapter(1, folder.path()), adapter(1, other.path()));
    // Nothing, unless the server allows it.
    let server = Running::start(ServeConfig::default(), &[]);
    assert_eq!(load(&server, "one", &inside).0, 403);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({ "lora_name": "one" })).0, 403);

    let config =
        ServeConfig { adapter_folders: vec![folder.path().to_owned()], ..ServeConfig::default() };
    let server = Running::start(config, &[]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, folder.path().join("link")).unwrap();
    let around = folder.path().join("..").join(other.path().file_name().unwrap()).join("adapter1");
    let mut wrong = vec![outside, around, folder.path().join("missing"), PathBuf::from("/etc")];
    if cfg!(unix) {
        wrong.push(folder.path().join("link"));
    }
    for path in wrong {
        let (status, said) = load(&server, "one", &path);
        assert_eq!(status, 403, "{}: {said}", path.display());
        assert_eq!(said["error"]["param"], "lora_path");
    }
    // The folder itself has no adapter.
    let (status, said) = load(&server, "one", folder.path());
    assert_eq!(status, 400, "{said}");
    assert!(said["error"]["message"].as_str().unwrap().contains("adapter_config.json"), "{said}");
    assert_eq!(load(&server, "base", &inside).0, 409);
    assert_eq!(load(&server, "one", &inside).0, 200);
    assert_eq!(load(&server, "one", &inside).0, 409);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({ "lora_name": "base" })).0, 400);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({ "lora_name": "two" })).0, 404);
    assert_eq!(names(&server), ["base", "one"]);
    // What cannot run beside others: a norm of its own, which a batch has one of; another vocabulary.
    let lora = LoraConfig::new(2, 4).targets(["q_proj"]).modules_to_save(["input_layernorm"]);
    let norm = folder.path().join("norm");
    model().with_adapter(&lora).unwrap().save_adapter("default", &norm).unwrap();
    let (status, said) = load(&server, "norm", &norm);
    assert_eq!(status, 400, "{said}");
    let message = said["error"]["message"].as_str().unwrap();
    assert!(message.contains("beside others") && message.contains("input_layernorm"), "{said}");
    assert_eq!(names(&server), ["base", "one"]);
    server.ask("/v1/chat/completions", &chat("one", "x", 2));
}
