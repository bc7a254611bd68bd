//! A server for a model and many adapters, with OpenAI's API: requests with different adapters are answered in one batch,
//! which they join and leave at any token.
//!
//! | what | where |
//! |---|---|
//! | models and adapters | `GET /v1/models`, `GET /v1/models/NAME` |
//! | chats | `POST /v1/chat/completions` |
//! | texts | `POST /v1/completions` |
//! | adapters that come and go | `POST /v1/load_lora_adapter`, `POST /v1/unload_lora_adapter` (with [`ServeConfig::adapter_folders`]) |
//! | health, and metrics in Prometheus' format | `GET /health`, `GET /metrics` |
//! | a page to chat | `GET /` |
//!
//! ```no_run
//! use burn_lora_llama::{Llama, Tokenizer};
//! use burn_lora_serve::{ServeConfig, Server};
//! use std::net::TcpListener;
//!
//! # let device = Default::default();
//! let model = Llama::from_pretrained("models/SmolLM2-135M-Instruct").load(&device)?;
//! let tokenizer = Tokenizer::from_pretrained("models/SmolLM2-135M-Instruct")?;
//! let mut server = Server::new("SmolLM2", model, tokenizer, ServeConfig::default())?;
//! server.load_adapter("brief", "adapters/brief")?;
//! server.run(TcpListener::bind("127.0.0.1:8000")?, || false)?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod answers;
mod api;
mod config;
mod error;
mod metrics;
mod models;
mod server;
mod worker;

pub use config::ServeConfig;
pub use error::ServeError;
pub use server::Server;
