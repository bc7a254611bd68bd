//! Requests that are wrong, and settings of a server that are.

use super::*;

#[test]
fn requests_that_are_wrong() {
    let server = Running::start(ServeConfig::default(), &[]);
    let chat = |more: Value| ("/v1/chat/completions", with(chat("base", "x", 2), more));
    let text = |more: Value| {
        let body = json!({ "model": "base", "prompt": "x", "max_tokens": 2 });
        ("/v1/completions", with(body, more))
    };
    let messages = |message: Value| chat(json!({ "messages": [message] }));
    let cases = [
        (chat(json!({ "temperature": 3 })), "temperature", "goes from 0 to 2"),
        (chat(json!({ "temperature": "hot" })), "temperature", "\"hot\""),
        (chat(json!({ "top_p": 2 })), "top_p", "goes from"),
        (chat(json!({ "tool_choice": { "type": "function" } })), "tool_choice", "not forced"),
        (chat(json!({ "ignore_eos": true })), "ignore_eos", "not supported"),
        (chat(json!({ "presence_penalty": 3 })), "presence_penalty", "goes from -2 to 2"),
        (chat(json!({ "max_tokens": 0 })), "max_tokens", "goes from 1"),
        (chat(json!({ "max_completion_tokens": -1 })), "max_completion_tokens", "-1"),
        (chat(json!({ "n": 0 })), "n", "goes from 1"),
        (chat(json!({ "stop": [""] })), "stop", "none is empty"),
        (chat(json!({ "top_logprobs": 2 })), "top_logprobs", "`logprobs`"),
        (chat(json!({ "logprobs": true, "top_logprobs": 21 })), "top_logprobs", "from 0 to 20"),
        (chat(json!({ "logit_bias": { "1": 5 } })), "logit_bias", "not supported"),
        (
            chat(json!({ "response_format": { "type": "json_object" } })),
            "response_format",
            "not supported",
        ),
        (chat(json!({ "stream_options": {} })), "stream_options", "`stream`"),
        (chat(json!({ "tool_choice": "required" })), "tool_choice", "not forced"),
        (chat(json!({ "tools": [{ "name": "x" }] })), "tools[0]", "a tool is"),
        (chat(json!({ "tempreature": 1 })), "tempreature", "Unrecognized request argument"),
        (chat(json!({ "messages": [] })), "messages", "empty"),
        (chat(json!({ "messages": "x" })), "messages", "\"x\""),
        (messages(json!({ "content": "x" })), "messages[0]", "no `role`"),
        (
            messages(json!({ "role": "user", "content": [{ "type": "image_url" }] })),
            "messages[0]",
            "`text`",
        ),
        (text(json!({ "prompt": [] })), "prompt", "one to 256"),
        (text(json!({ "prompt": "" })), "prompt", "of a token or more"),
        (text(json!({ "prompt": { "a": 1 } })), "prompt", "{\"a\":1}"),
        (text(json!({ "logprobs": 6 })), "logprobs", "from 0 to 5"),
        (text(json!({ "echo": true })), "echo", "not supported"),
        (text(json!({ "best_of": 4 })), "best_of", "not supported"),
    ];
    for ((path, body), param, reason) in cases {
        let (status, said) = server.post(path, &body);
        let error = &said["error"];
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{body}: {said}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(reason), "{said}");
    }
    // A token that the model has not.
    let (path, body) = text(json!({ "prompt": [5, 4000] }));
    let (status, said) = server.post(path, &body);
    assert_eq!(status, 400, "{said}");
    assert!(said["error"]["message"].as_str().unwrap().contains("4000"), "{said}");

    let (status, said) =
        server.post("/v1/chat/completions", &json!({ "model": "other", "messages": [] }));
    assert_eq!((status, &said["error"]["code"]), (404, &"model_not_found".into()));
    let (status, said) = server.post("/v1/chat/completions", &json!([]));
    assert_eq!((status, said["error"]["type"].as_str()), (400, Some("invalid_request_error")));
    let send = |text: &str| {
        let request = agent().post(server.url("/v1/completions"));
        let mut found = request.header("Content-Type", "application/json").send(text).unwrap();
        (found.status().as_u16(), found.body_mut().read_json::<Value>().unwrap())
    };
    assert_eq!(send("{\"model\": ").0, 400);
    let large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(17 << 20));
    let request = agent().post(server.url("/v1/completions"));
    // It may be refused before all of it is sent.
    let found = request.header("Content-Type", "application/json").send(large);
    assert!(found.map_or(true, |found| found.status().as_u16() == 413));
    for (path, status) in [("/v1/other", 404), ("/v1/completions", 405), ("/v1/models/other", 404)]
    {
        let (found, text) = server.get(path);
        let said: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (found, said["error"]["type"].as_str()),
            (status, Some("invalid_request_error"))
        );
    }
    // After all of this it answers.
    server.ask("/v1/chat/completions", &super::chat("base", "x", 2));
    // What changes nothing is taken.
    let (path, body) = chat(json!({
        "user": "a", "metadata": {}, "store": false, "logit_bias": {}, "response_format": { "type": "text" },
        "temperature": null, "tools": [], "n": 1, "service_tier": "auto", "top_k": -1, "min_p": 0.1, "top_p": 0,
        "skip_special_tokens": true, "ignore_eos": false, "echo": false, "parallel_tool_calls": true,
    }));
    server.ask(path, &body);
}

#[test]
fn a_template_without_tools() {
    let mut tokenizer = tokenizer();
    let template = fs::read_to_string(testdata("tokenizer/templates/zephyr.jinja")).unwrap();
    tokenizer.set_chat_template(ChatTemplate::new(&template).unwrap());
    let server = start(model(), tokenizer);
    let tool = json!({ "type": "function", "function": { "name": "now" } });
    let body = with(chat("base", "x", 2), json!({ "tools": [tool] }));
    let (status, said) = server.post("/v1/chat/completions", &body);
    assert_eq!((status, &said["error"]["param"]), (400, &"tools".into()));
}

#[test]
fn settings_that_are_wrong() {
    let error = |config: ServeConfig| {
        Server::new("base", model(), tokenizer(), config).err().unwrap().to_string()
    };
    let config = ServeConfig::default;
    assert!(error(ServeConfig { batch: 0, ..config() }).contains("`batch` is 0"));
    assert!(error(ServeConfig { max_length: 1, ..config() }).contains("`max_length` is 1"));
    assert!(error(ServeConfig { key: Some(String::new()), ..config() }).contains("`key`"));
    let folders = vec![PathBuf::from("no/such/folder")];
    assert!(error(ServeConfig { adapter_folders: folders, ..config() }).contains("no/such/folder"));
    let mut server = Server::new("base", model(), tokenizer(), config()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = server.load_adapter("one", folder.path()).unwrap_err().to_string();
    assert!(error.contains("adapter `one`") && error.contains("adapter_config.json"), "{error}");
    let path = adapter(1, folder.path());
    assert!(server.load_adapter("base", &path).unwrap_err().to_string().contains("the name is"));
}
