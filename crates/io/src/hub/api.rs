//! Requests to the hub's interface.

use super::settings::Hub;
use std::time::Duration;
use ureq::{Agent, Body, http::Response};

/// Longest answer that is read, in bytes.
const ANSWER: u64 = 1 << 24;

/// Longest error of a server that is shown, in bytes.
const SHOWN: usize = 300;

/// A client with the hub's address and token.
pub(super) struct Api<'a> {
    pub hub: &'a Hub,
    agent: Agent,
}

impl<'a> Api<'a> {
    pub fn new(hub: &'a Hub) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("burn-lora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .build();
        Self { hub, agent: agent.into() }
    }

    /// Address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.hub.endpoint.trim_end_matches('/'))
    }

    fn authorization(&self) -> String {
        self.hub.token.as_ref().map_or_else(String::new, |token| format!("Bearer {token}"))
    }

    /// Gets JSON.
    pub fn get(&self, path: &str) -> Result<serde_json::Value, ApiError> {
        let url = self.url(path);
        let request = self.agent.get(&url).header("authorization", self.authorization());
        answer(&url, request.call())
    }

    /// Sends a text, and reads the JSON that comes back.
    pub fn post(&self, url: &str, kind: &str, body: &str) -> Result<serde_json::Value, ApiError> {
        let request = self
            .agent
            .post(url)
            .header("authorization", self.authorization())
            .header("accept", accepted(kind))
            .header("content-type", kind);
        answer(url, request.send(body))
    }

    /// Sends bytes to an address that needs no token. Returns its header `etag`.
    pub fn put(
        &self,
        url: &str,
        headers: &[(String, String)],
        length: u64,
        mut body: impl std::io::Read,
    ) -> Result<String, ApiError> {
        let mut request = self.agent.put(url).header("content-length", length);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let sent = request.send(ureq::SendBody::from_reader(&mut body));
        let found = checked(url, sent)?;
        let etag = found.headers().get("etag").and_then(|value| value.to_str().ok());
        Ok(etag.unwrap_or_default().to_owned())
    }
}

/// Git LFS has a type of its own for JSON.
fn accepted(kind: &str) -> &str {
    if kind.contains("git-lfs") { kind } else { "application/json" }
}

/// Error of a request.
pub(super) struct ApiError {
    /// HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    pub reason: String,
}

fn checked(
    url: &str,
    sent: Result<Response<Body>, ureq::Error>,
) -> Result<Response<Body>, ApiError> {
    // Addresses of stores carry signatures after the question mark.
    let url = url.split('?').next().unwrap_or(url);
    let mut found =
        sent.map_err(|error| ApiError { status: None, reason: format!("{url}: {error}") })?;
    let status = found.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(found);
    }
    let text = found.body_mut().with_config().limit(ANSWER).read_to_string().unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let text = json["error"].as_str().map_or(text.as_str(), |error| error);
    let text: String = crate::escaped(text).to_string().chars().take(SHOWN).collect();
    Err(ApiError { status: Some(status), reason: format!("{url} answered {status}: {text}") })
}

fn answer(
    url: &str,
    sent: Result<Response<Body>, ureq::Error>,
) -> Result<serde_json::Value, ApiError> {
    let mut found = checked(url, sent)?;
    let status = Some(found.status().as_u16());
    let wrong = |error: String| ApiError { status, reason: format!("{url}: {error}") };
    let text = found.body_mut().with_config().limit(ANSWER).read_to_string();
    let text = text.map_err(|error| wrong(error.to_string()))?;
    match text.trim() {
        "" | "OK" => Ok(serde_json::Value::Null),
        text => serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}"))),
    }
}
