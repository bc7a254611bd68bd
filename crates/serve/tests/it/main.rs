//! The server, asked as clients ask it. What it answers is compared with the model alone.

mod adapters;
mod answers;
mod clients;
mod limits;
mod wrong;

use burn_lora_adapter::{AdaptableExt, Init, LoraConfig, Selection};
use burn_lora_llama::{GenerateConfig, GenerateExt, GeneratedText, Llama};
use burn_lora_serve::{ServeConfig, ServeError, Server};
use burn_lora_text::{ChatTemplate, Message, Tokenizer};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

fn tokenizer() -> Tokenizer {
    let mut tokenizer = Tokenizer::from_pretrained(testdata("quickstart/model")).unwrap();
    let template = fs::read_to_string(testdata("tokenizer/templates/qwen2_5.jinja")).unwrap();
    tokenizer.set_chat_template(ChatTemplate::new(&template).unwrap());
    tokenizer
}

/// A server of a model and a tokenizer that are not those of the others.
fn start(model: Llama, tokenizer: Tokenizer) -> Running {
    let server = Server::new("base", model, tokenizer, ServeConfig::default()).unwrap();
    Running::run(server)
}

fn model() -> Llama {
    Llama::from_pretrained(testdata("quickstart/model")).load(&Default::default()).unwrap()
}

/// Saves an adapter that changes answers.
fn adapter(seed: u64, folder: &Path) -> PathBuf {
    let lora = LoraConfig::new(4, 16).all_linear().init(Init::Random).seed(seed);
    let folder = folder.join(format!("adapter{seed}"));
    model().with_adapter(&lora).unwrap().save_adapter("default", &folder).unwrap();
    folder
}

/// A server on a thread of its own.
struct Running {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    /// With the base `base`.
    fn start(config: ServeConfig, adapters: &[(&str, &Path)]) -> Self {
        let mut server = Server::new("base", model(), tokenizer(), config).unwrap();
        for (name, folder) in adapters {
            server.load_adapter(name, folder).unwrap();
        }
        Self::run(server)
    }

    fn run(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread =
            thread::spawn(move || server.run(listener, move || stopped.load(Ordering::Relaxed)));
        Self { address, stop, thread: Some(thread) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(self.url(path)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Status and document of an answer.
    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_with(path, body, &[])
    }

    fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> (u16, Value) {
        let mut request = agent().post(self.url(path)).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body.to_string()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        let document = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (response.status().as_u16(), document)
    }

    /// The answer to a request that is right.
    fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, document) = self.post(path, body);
        assert_eq!(status, 200, "{document}");
        document
    }

    /// Server-sent events, as they come.
    fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let request = agent().post(self.url(path)).header("Content-Type", "application/json");
        let response = request.send(body.to_string()).unwrap();
        let status = response.status();
        let body: Box<dyn Read> = Box::new(response.into_body().into_reader());
        assert_eq!(status, 200);
        let lines = BufReader::new(body).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
    }

    /// A number of the metrics.
    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    fn end(mut self) -> Result<(), ServeError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

/// What the model alone answers to a question, with an adapter.
fn alone(folder: Option<&Path>, question: &str, tokens: usize) -> GeneratedText {
    let mut model = model();
    if let Some(folder) = folder {
        model.load_adapter("default", folder).unwrap();
        model.select(Selection::adapters(["default"])).unwrap();
    }
    let config = GenerateConfig::new(tokens);
    let go_on = |_: &str| ControlFlow::Continue(());
    model.chat(&tokenizer(), &[Message::user(question)], &config, go_on).unwrap()
}

/// A chat of one question, greedy.
fn chat(model: &str, question: &str, tokens: usize) -> Value {
    let messages = json!([{ "role": "user", "content": question }]);
    json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": tokens })
}

/// A document with further fields.
fn with(mut document: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    document.as_object_mut().unwrap().extend(more);
    document
}
