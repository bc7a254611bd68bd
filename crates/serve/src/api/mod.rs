//! OpenAI's API: what is asked, and how it is answered.

mod adapters;
mod chat;
mod completions;
mod error;
mod fields;
mod logs;
mod settings;
mod stream;

pub(crate) use error::ApiError;
use fields::Fields;

use crate::{
    answers::Queue,
    config::ServeConfig,
    models::{Models, Served},
    worker::Command,
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use burn_lora_text::Tokenizer;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use subtle::ConstantTimeEq;
use tokio::{sync::Mutex, sync::oneshot, task};

/// Most bytes of a request.
const BODY: usize = 16 << 20;

/// What all requests share.
pub(crate) struct App {
    pub config: ServeConfig,
    pub models: Models,
    pub queue: Queue,
    /// Held while adapters come and go.
    pub loading: Mutex<()>,
    /// Number of adapters loaded so far.
    pub loads: AtomicUsize,
    pub ending: AtomicBool,
    /// Whether requests have to be for this machine by name: only it can ask, and without a key.
    pub checks_host: bool,
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/models", get(adapters::list))
        .route("/v1/models/{*name}", get(adapters::one))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .layer(middleware::from_fn_with_state(app.clone(), with_key));
    let not_found = |request: Request| async move { ApiError::not_found(request.uri().path()) };
    let no_method = |method: Method, request: Request| async move {
        let message = format!("{method} is not what {} takes", request.uri().path());
        ApiError::invalid(None, message).status(StatusCode::METHOD_NOT_ALLOWED)
    };
    api.route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(app.clone(), from_here))
        .with_state(app)
}

async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
    let headers = [(header::CONTENT_SECURITY_POLICY, policy), (header::X_FRAME_OPTIONS, "DENY")];
    (headers, Html(include_str!("../page.html")))
}

async fn health(State(app): State<Arc<App>>) -> Result<Json<serde_json::Value>, ApiError> {
    app.check_going()?;
    Ok(Json(json!({ "status": "ok" })))
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.queue.metrics.text())
}

/// Lets requests with the key pass, and counts them.
async fn with_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &app.config.key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|given| given.to_str().ok()?.strip_prefix("Bearer "));
        let given = given.unwrap_or_default().as_bytes();
        if !bool::from(given.ct_eq(key.as_bytes())) {
            return Err(ApiError::no_key());
        }
    }
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    app.queue.metrics.answered(path, response.status().as_u16());
    Ok(response)
}

/// On a server for this machine alone: refuses requests that a page of another site makes under a name of its own.
async fn from_here(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    });
    let is_here = |name: &str| {
        let address =
            name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    if app.checks_host && !name.is_some_and(is_here) {
        let host = host.unwrap_or("nothing");
        let message =
            format!("the host is {host}, and this server is for its own machine: give it a key");
        return Err(ApiError::forbidden(message));
    }
    Ok(next.run(request).await)
}

impl App {
    /// What answers under a name.
    fn served(&self, name: &str) -> Result<Arc<Served>, ApiError> {
        let known =
            || self.models.all().iter().map(|served| served.name.clone()).collect::<Vec<_>>();
        self.models.get(name).ok_or_else(|| ApiError::no_model(name, &known()))
    }

    /// Refuses requests while the server ends.
    fn check_going(&self) -> Result<(), ApiError> {
        if self.ending.load(Ordering::Relaxed) { Err(ApiError::ending()) } else { Ok(()) }
    }

    /// Refuses to load and unload, unless the server allows it.
    fn check_may_load(&self) -> Result<(), ApiError> {
        if self.config.adapter_folders.is_empty() {
            let message = "this server does not load or unload adapters";
            return Err(ApiError::forbidden(message));
        }
        Ok(())
    }

    /// The folder of an adapter that a request may load.
    fn allowed(&self, path: &Path) -> Result<PathBuf, ApiError> {
        self.check_may_load()?;
        let shown = path.display();
        // Whether or not it is there, those outside are all the same.
        let outside = || {
            let folders: Vec<_> = self
                .config
                .adapter_folders
                .iter()
                .map(|folder| folder.display().to_string())
                .collect();
            let message = format!("{shown} is no folder below {}", folders.join(" or "));
            ApiError::invalid(Some("lora_path"), message).status(StatusCode::FORBIDDEN)
        };
        let found = path.canonicalize().map_err(|_| outside())?;
        let inside = self.config.adapter_folders.iter().any(|folder| found.starts_with(folder));
        if inside && found.is_dir() { Ok(found) } else { Err(outside()) }
    }

    /// Loads an adapter under a name that nothing has.
    pub async fn load(&self, name: &str, folder: PathBuf) -> Result<(), ApiError> {
        let wrong = |reason: String| ApiError::invalid(Some("lora_path"), reason);
        let base = self.models.base();
        let (model, own) = (self.config.tokenizer.clone(), folder.clone());
        let tokenizer = blocking(move || {
            let Some(model) = model else { return Ok(base.tokenizer.clone()) };
            let found = Tokenizer::from_adapter(own, model);
            found.map(Arc::new).map_err(|error| wrong(error.to_string()))
        })
        .await?;
        // Another name in the model each time, as texts may still use the adapter that had this name before.
        let adapter = format!("{name} ({})", self.loads.fetch_add(1, Ordering::Relaxed));
        let (done, loaded) = oneshot::channel();
        let command = Command::Load { name: adapter.clone(), folder: folder.clone(), done };
        self.queue.commands.send(command).map_err(|_| ApiError::broken())?;
        loaded.await.map_err(|_| ApiError::broken())?.map_err(wrong)?;
        self.models.add(Served::new(name, Some(&adapter), tokenizer, Some(folder)));
        Ok(())
    }

    fn unload(&self, adapter: &str) -> Result<(), ApiError> {
        let command = Command::Unload(adapter.to_owned());
        self.queue.commands.send(command).map_err(|_| ApiError::broken())
    }
}

/// Runs what takes long on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    task::spawn_blocking(work).await.map_err(|error| ApiError::failed(error.to_string()))?
}
