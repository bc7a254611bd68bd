//! Answers as they come: server-sent events.

use super::ApiError;
use crate::{answers::Answers, worker::Event};
use axum::response::{
    IntoResponse, Response,
    sse::{Event as Sent, KeepAlive, Sse},
};
use futures_util::stream;
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible};

/// Sends documents: the first ones, those of each event, and those of the end (`None`). What fails before the first event is
/// an error of the request.
pub(super) async fn respond(
    mut answers: Answers,
    first: Vec<Value>,
    mut documents: impl FnMut(Option<(usize, Event)>) -> Vec<Value> + Send + 'static,
) -> Result<Response, ApiError> {
    let data = |document: &Value| Sent::default().data(document.to_string());
    let mut waiting: VecDeque<_> = first.iter().map(data).collect();
    waiting.extend(documents(answers.next().await?).iter().map(data));
    let state = (answers, documents, waiting, false);
    let events = stream::unfold(state, move |mut state| async move {
        let (answers, documents, waiting, ended) = &mut state;
        while waiting.is_empty() && !*ended {
            match answers.next().await {
                Ok(event) => {
                    *ended = event.is_none();
                    waiting.extend(documents(event).iter().map(data));
                }
                // The status has been sent.
                Err(error) => {
                    *ended = true;
                    waiting.push_back(data(&error.document()));
                }
            }
            if *ended {
                waiting.push_back(Sent::default().data("[DONE]"));
            }
        }
        let next = waiting.pop_front()?;
        Some((Ok::<_, Infallible>(next), state))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
