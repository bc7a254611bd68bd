//! Answers as they come: server-sent events.

use crate::{answers::Answers, worker::Event};
use axum::response::{
    IntoResponse, Response,
    sse::{Event as Sent, KeepAlive, Sse},
};
use futures_util::stream;
use serde_json::Value;
use std::{collections::VecDeque, convert::Infallible};

/// Sends documents: the first ones, those of each event, and those of the end (`None`).
pub(super) fn respond(
    answers: Answers,
    first: Vec<Value>,
    documents: impl FnMut(Option<(usize, Event)>) -> Vec<Value> + Send + 'static,
) -> Response {
    let data = |document: &Value| Sent::default().data(document.to_string());
    let waiting: VecDeque<_> = first.iter().map(data).collect();
    let state = (answers, documents, waiting, false);
    let events = stream::unfold(
        state,
        move |(mut answers, mut documents, mut waiting, mut ended)| async move {
            while waiting.is_empty() && !ended {
                match answers.next().await {
                    Ok(event) => {
                        ended = event.is_none();
                        waiting.extend(documents(event).iter().map(data));
                    }
                    // The status has been sent.
                    Err(error) => {
                        ended = true;
                        waiting.push_back(data(&error.document()));
                    }
                }
                if ended {
                    waiting.push_back(Sent::default().data("[DONE]"));
                }
            }
            let next = waiting.pop_front()?;
            Some((Ok::<_, Infallible>(next), (answers, documents, waiting, ended)))
        },
    );
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
