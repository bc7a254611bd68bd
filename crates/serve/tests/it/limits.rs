//! Many clients, and the limits of a server.

use super::*;
use std::time::{Duration, Instant};

/// Waits until it is so.
fn soon(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// 64 clients at once, with adapters of their own and lengths of their own: each gets the answer that it would get alone.
#[test]
fn many_clients() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [1, 2, 3].map(|seed| adapter(seed, folder.path()));
    let names = ["base", "one", "two", "three"];
    let all: Vec<_> =
        names[1..].iter().copied().zip(adapters.iter().map(PathBuf::as_path)).collect();
    let config = ServeConfig { batch: 8, ..ServeConfig::default() };
    let server = Running::start(config, &all);
    let words = ["scale", "What is a facet?", "geom_bar", "How do I map a colour to a column?"];
    let ask = |client: usize| {
        let (name, question) = (names[client % 4], words[client / 4 % 4]);
        (client % 4, question, 4 + client % 13, chat(name, question, 4 + client % 13))
    };
    let found: Vec<Value> = thread::scope(|scope| {
        let clients = (0..64).map(|client| {
            let server = &server;
            scope.spawn(move || server.ask("/v1/chat/completions", &ask(client).3))
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    // Once with the most tokens: the others are beginnings.
    let mut known = std::collections::BTreeMap::new();
    for (client, found) in found.iter().enumerate() {
        let (adapter, question, tokens, _) = ask(client);
        let expected = known.entry((adapter, question, tokens)).or_insert_with(|| {
            let folder = adapter.checked_sub(1).map(|number| adapters[number].as_path());
            alone(folder, question, tokens).text
        });
        assert_eq!(found["choices"][0]["message"]["content"], *expected, "client {client}");
    }
    for gauge in ["burn_lora_running_texts", "burn_lora_waiting_texts"] {
        soon(gauge, || server.metric(gauge) == 0.0);
    }
    let path = "burn_lora_requests_total{path=\"/v1/chat/completions\",status=\"200\"}";
    assert_eq!(server.metric(path), 64.0);
    assert_eq!(server.metric("burn_lora_text_time_seconds_count"), 64.0);
}

#[test]
fn who_hangs_up_frees_the_place() {
    let server = Running::start(ServeConfig { batch: 1, ..ServeConfig::default() }, &[]);
    let body = with(long(3900), json!({ "stream": true }));
    let mut events = server.stream("/v1/chat/completions", &body);
    events.next().unwrap();
    soon("it runs", || server.metric("burn_lora_running_texts") == 1.0);
    drop(events);
    let start = Instant::now();
    server.ask("/v1/chat/completions", &chat("base", "x", 1));
    // It did not go on to its end.
    assert!(server.metric("burn_lora_generated_tokens_total") < 3000.0);
    assert!(start.elapsed() < Duration::from_secs(30));
    soon("the place is free", || server.metric("burn_lora_running_texts") == 0.0);
}

/// A request that is answered with an error of this status and code.
fn refused(server: &Running, body: &Value, status: u16, code: &str) -> Value {
    let (found, said) = server.post("/v1/chat/completions", body);
    assert_eq!((found, said["error"]["code"].as_str()), (status, Some(code)), "{said}");
    said
}

/// A text that takes long: what was said becomes likelier, and so it does not end.
fn long(tokens: usize) -> Value {
    with(chat("base", "x", tokens), json!({ "frequency_penalty": -2 }))
}

#[test]
fn lengths_queue_and_time() {
    let config = ServeConfig { max_length: 160, queue: 1, batch: 1, ..ServeConfig::default() };
    let server = Running::start(config, &[]);
    let said = refused(&server, &chat("base", "x", 150), 400, "context_length_exceeded");
    assert!(said["error"]["message"].as_str().unwrap().contains("maximum context length is 160"));
    refused(&server, &chat("base", &"word ".repeat(200), 1), 400, "context_length_exceeded");
    // Without a length, an answer has what is left.
    let mut body = long(1);
    body.as_object_mut().unwrap().remove("max_tokens");
    let found = server.ask("/v1/chat/completions", &body);
    assert!(found["usage"]["total_tokens"].as_u64().unwrap() <= 160);
    // Three texts, where one runs and one may wait.
    let (status, said) = server.post("/v1/chat/completions", &with(long(2), json!({ "n": 3 })));
    assert_eq!((status, &said["error"]["param"]), (400, &"n".into()));
    let first = with(long(40), json!({ "stream": true, "n": 2 }));
    let mut events = server.stream("/v1/chat/completions", &first);
    events.next().unwrap();
    refused(&server, &long(2), 429, "rate_limit_exceeded");
    drop(events);
    let both = with(long(2), json!({ "n": 2 }));
    soon("places are free", || server.post("/v1/chat/completions", &both).0 == 200);

    let timeout = Duration::from_millis(500);
    let server = Running::start(ServeConfig { timeout, ..ServeConfig::default() }, &[]);
    refused(&server, &long(3000), 408, "timeout");
    let body = with(long(3000), json!({ "stream": true }));
    let events: Vec<_> = server.stream("/v1/chat/completions", &body).collect();
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(
        (&error["error"]["code"], &*events[events.len() - 1]),
        (&"timeout".into(), "[DONE]")
    );
}

#[test]
fn keys() {
    let key = Some("secret".to_owned());
    let server = Running::start(ServeConfig { key, ..ServeConfig::default() }, &[]);
    let body = chat("base", "x", 1);
    for headers in
        [vec![], vec![("Authorization", "Bearer other")], vec![("Authorization", "secret")]]
    {
        let (status, said) = server.post_with("/v1/chat/completions", &body, &headers);
        assert_eq!((status, &said["error"]["code"]), (401, &"invalid_api_key".into()));
    }
    let headers = [("Authorization", "Bearer secret")];
    assert_eq!(server.post_with("/v1/chat/completions", &body, &headers).0, 200);
    assert_eq!(server.get("/v1/models").0, 401);
    assert_eq!(server.get("/health").0, 200);
    let config = ServeConfig { key: Some("secret".into()), ..ServeConfig::default() };
    assert!(!format!("{config:?}").contains("secret"));
}

/// A page of another site cannot ask a server of this machine.
#[test]
fn requests_of_other_sites() {
    let server = Running::start(ServeConfig::default(), &[]);
    let body = chat("base", "x", 1);
    for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"] {
        let (status, _) = server.post_with("/v1/chat/completions", &body, &[("Host", host)]);
        assert_eq!(status, 403, "{host}");
    }
    for host in ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"] {
        let (status, _) = server.post_with("/v1/chat/completions", &body, &[("Host", host)]);
        assert_eq!(status, 200, "{host}");
    }
    let request =
        agent().post(server.url("/v1/chat/completions")).header("Content-Type", "text/plain");
    assert_eq!(request.send(body.to_string()).unwrap().status().as_u16(), 415);
}

#[test]
fn answers_are_completed_at_the_end() {
    let server = Running::start(ServeConfig::default(), &[]);
    let body = with(chat("base", "x", 150), json!({ "stream": true }));
    let mut events = server.stream("/v1/chat/completions", &body);
    let first = events.next().unwrap();
    server.end().unwrap();
    let events: Vec<_> = std::iter::once(first).chain(events).collect();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let text = events.iter().filter_map(|event| {
        let event: Value = serde_json::from_str(event).ok()?;
        event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    });
    assert_eq!(text.collect::<String>(), alone(None, "x", 150).text);

    // Those that take longer than the grace say so.
    let grace = Duration::from_millis(1);
    let server = Running::start(ServeConfig { grace, ..ServeConfig::default() }, &[]);
    let body = with(long(3900), json!({ "stream": true }));
    let mut events = server.stream("/v1/chat/completions", &body);
    let first = events.next().unwrap();
    server.end().unwrap();
    let events: Vec<_> = std::iter::once(first).chain(events).collect();
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
}
