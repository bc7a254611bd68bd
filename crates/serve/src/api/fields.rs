//! The body of a request: an object whose fields are taken one by one, so that none is overlooked.

use super::error::ApiError;
use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, value::RawValue};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;

/// Longest time in which the body of a request comes.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Fields of a request that are left.
pub(crate) struct Fields(BTreeMap<String, Box<RawValue>>);

impl Fields {
    /// Takes a field; `None` if it is not there, or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name).filter(|value| value.get() != "null") else {
            return Ok(None);
        };
        serde_json::from_str(value.get()).map(Some).map_err(|error| {
            let shown: String = value.get().chars().take(80).collect();
            ApiError::invalid(Some(name), format!("`{name}` is {shown}: {error}"))
        })
    }

    /// Takes a field that has to be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        let missing = || ApiError::invalid(Some(name), format!("`{name}` is missing"));
        self.take(name)?.ok_or_else(missing)
    }

    /// Takes a number in a range.
    pub fn number<T: DeserializeOwned + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        (least, most): (T, T),
    ) -> Result<Option<T>, ApiError> {
        match self.take::<T>(name)? {
            Some(value) if !(least <= value && value <= most) => {
                let message = format!("`{name}` is {value}, and goes from {least} to {most}");
                Err(ApiError::invalid(Some(name), message))
            }
            value => Ok(value),
        }
    }

    /// Leaves out fields that change nothing in an answer.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| _ = self.0.remove(*name));
    }

    /// Refuses a field with any other value than the one that means nothing.
    pub fn refuse(&mut self, name: &str, nothing: &Value) -> Result<(), ApiError> {
        match self.take::<Value>(name)? {
            Some(value) if value != *nothing => {
                let message = format!("`{name}` is not supported: leave it out, or set {nothing}");
                Err(ApiError::invalid(Some(name), message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses all that is left.
    pub fn finish(self) -> Result<(), ApiError> {
        let Some(name) = self.0.keys().next() else { return Ok(()) };
        Err(ApiError::invalid(Some(name), format!("Unrecognized request argument: {name}")))
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A page of any other site can send all but this.
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            let message = "the content type of a request is application/json";
            return Err(ApiError::invalid(None, message).status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let body = timeout(BODY_TIME, Bytes::from_request(request, state));
        let body = body.await.map_err(|_| ApiError::late())?.map_err(|rejection| {
            ApiError::invalid(None, rejection.body_text()).status(rejection.status())
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            let message = format!("the body of a request is an object of JSON: {error}");
            ApiError::invalid(None, message)
        })
    }
}
