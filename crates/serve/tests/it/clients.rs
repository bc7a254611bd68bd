//! Real clients: OpenAI's, and a browser.

use super::*;
use std::process::{Command, Stdio};

/// OpenAI's client for Python: whole answers, streams, log-probabilities, tools, errors, and many at once.
#[test]
#[ignore = "needs BURN_LORA_PYTHON, a Python with openai"]
fn the_client_of_openai() {
    let python = std::env::var("BURN_LORA_PYTHON").expect("BURN_LORA_PYTHON is set");
    let folder = tempfile::tempdir().unwrap();
    let adapters = [1, 2].map(|seed| adapter(seed, folder.path()));
    let config = ServeConfig {
        key: Some("secret".into()),
        adapter_folders: vec![folder.path().to_owned()],
        ..ServeConfig::default()
    };
    let server = Running::start(config, &[("one", &adapters[0]), ("two", &adapters[1])]);
    let expected = [None, Some(adapters[0].as_path()), Some(adapters[1].as_path())];
    let expected = expected.map(|folder| alone(folder, "What does geom_point draw?", 12).text);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let status = Command::new(python)
        .arg(script)
        .args([server.url("/v1"), serde_json::to_string(&expected).unwrap()])
        .args(adapters)
        .status()
        .unwrap();
    assert!(status.success());
}

/// The page, in a browser: a question, and its answer.
#[test]
#[ignore = "wants Chromium (`chromium`, or the program that BURN_LORA_CHROMIUM names)"]
fn the_page_answers() {
    let server = Running::start(ServeConfig::default(), &[]);
    let program = std::env::var("BURN_LORA_CHROMIUM").unwrap_or_else(|_| "chromium".into());
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new(program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(server.url("/"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(browser.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut page = Page::open(lines);
    page.until("document.getElementById('model').value === 'base'");
    page.run(
        "document.getElementById('temperature').value = 0; \
         document.getElementById('question').value = 'scale'; document.getElementById('send').click()",
    );
    page.until("document.querySelector('.assistant')?.dataset.done !== undefined");
    let text = page.run("document.querySelector('.assistant').textContent");
    let errors = page.run("document.querySelectorAll('.error').length");
    let tokens = ServeConfig::default().max_length;
    let expected = alone(None, "scale", tokens - 60).text;
    browser.kill().unwrap();
    browser.wait().unwrap();
    assert_eq!(errors, 0);
    assert!(!expected.is_empty());
    assert_eq!(text, expected);
}

/// A page of a browser, by its debugger.
struct Page {
    socket: tungstenite::WebSocket<std::net::TcpStream>,
    count: u64,
}

impl Page {
    /// The first page of the browser that says on these lines where its debugger is.
    fn open(mut lines: impl Iterator<Item = String>) -> Self {
        let address = lines
            .find_map(|line| line.strip_prefix("DevTools listening on ws://").map(str::to_owned));
        let address = address.expect("the browser says it");
        let address = address.split('/').next().unwrap();
        let pages: Value = loop {
            let found = agent().get(format!("http://{address}/json")).call();
            let found: Value = found.unwrap().body_mut().read_json().unwrap();
            if let Some(page) = found.as_array().unwrap().iter().find(|page| page["type"] == "page")
            {
                break page.clone();
            }
            thread::sleep(std::time::Duration::from_millis(50));
        };
        let stream = std::net::TcpStream::connect(address).unwrap();
        let url = pages["webSocketDebuggerUrl"].as_str().unwrap();
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        Self { socket, count: 0 }
    }

    /// Value of an expression.
    fn run(&mut self, expression: &str) -> Value {
        self.count += 1;
        let message = json!({
            "id": self.count,
            "method": "Runtime.evaluate",
            "params": { "expression": expression, "returnByValue": true },
        });
        self.socket.send(message.to_string().into()).unwrap();
        loop {
            let found = self.socket.read().unwrap();
            let Ok(found) = serde_json::from_str::<Value>(found.to_text().unwrap()) else {
                continue;
            };
            if found["id"] == self.count {
                return found["result"]["result"]["value"].clone();
            }
        }
    }

    fn until(&mut self, condition: &str) {
        let start = std::time::Instant::now();
        while self.run(condition) != true {
            assert!(start.elapsed() < std::time::Duration::from_secs(60), "{condition}");
            thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
