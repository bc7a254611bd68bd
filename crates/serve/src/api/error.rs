//! Errors in the shape of OpenAI's API.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

/// Error that a request is answered with.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None }
    }

    fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The request is wrong, in this field.
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self { param: param.map(Into::into), ..error }
    }

    /// With another status than 400.
    pub fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub fn too_long(param: &str, message: String) -> Self {
        Self::invalid(Some(param), message).coded("context_length_exceeded")
    }

    pub fn no_model(name: &str, known: &[String]) -> Self {
        let message = format!("The model `{name}` does not exist. There are {}.", known.join(", "));
        Self::invalid(Some("model"), message).status(StatusCode::NOT_FOUND).coded("model_not_found")
    }

    pub fn gone() -> Self {
        let message = "The model was unloaded before the answer began.";
        Self::invalid(Some("model"), message).status(StatusCode::NOT_FOUND).coded("model_not_found")
    }

    pub fn no_key() -> Self {
        let message = "Incorrect API key provided. Expected `Authorization: Bearer KEY`.";
        let error = Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message);
        error.coded("invalid_api_key")
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub fn not_found(what: &str) -> Self {
        let message = format!("{what}: there is nothing here");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).coded("unknown_url")
    }

    pub fn busy(texts: usize, most: usize) -> Self {
        let message = format!("{texts} texts are on their way, and no more than {most} may be");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.coded("rate_limit_exceeded")
    }

    pub fn late() -> Self {
        let message = "The answer took longer than this server allows.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message).coded("timeout")
    }

    pub fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "The server ends.")
    }

    pub fn broken() -> Self {
        let message = "The model has failed, and the server with it.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
    }

    pub fn failed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", reason)
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn document(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, "1".parse().expect("a number"));
        }
        // What clients try again by themselves, and what would be the same or take as long again.
        let again = [StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT];
        if again.contains(&self.status) || self.status == StatusCode::INTERNAL_SERVER_ERROR {
            let no = "false".parse().expect("a word");
            response.headers_mut().insert("x-should-retry", no);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = "Bearer".parse().expect("a word");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
