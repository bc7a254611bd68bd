//! `POST /v1/completions`.

use super::{
    ApiError, App, Fields,
    logs::{OfText, Place},
    settings::{Settings, id, usage},
    stream,
};
use crate::{
    answers::{Answers, Texts},
    models::{Served, now},
    worker::{Event, Piece},
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use burn_lora_llama::Stopped;
use burn_lora_text::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most prompts of a request.
const PROMPTS: usize = 256;

/// New tokens if a request does not say.
const MAX_TOKENS: usize = 16;

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

/// A text in progress.
#[derive(Default)]
struct Choice {
    text: String,
    log_probs: OfText,
    reason: &'static str,
}

pub(super) async fn complete(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    app.check_going()?;
    let mut settings = Settings::take(&mut fields)?;
    let served = app.served(&settings.model)?;
    let prompt = fields.need("prompt")?;
    let log_probs = fields.number("logprobs", (0, 5))?;
    if let Some(likeliest) = log_probs {
        let config = std::mem::take(&mut settings.config);
        settings.config = config.log_probs(likeliest);
    }
    fields.refuse("suffix", &Value::Null)?;
    fields.refuse("best_of", &settings.each.into())?;
    fields.finish()?;
    let tokenizer = served.tokenizer.clone();
    let prompts = super::blocking(move || encode(&tokenizer, prompt)).await?;
    settings.fit(("prompt", &prompts), app.config.max_length, Some(MAX_TOKENS))?;
    let count = prompts.iter().map(Vec::len).sum();
    let Settings { config, stops, seed, each, stream, usage: with_usage, .. } = settings;
    let number = prompts.len() * each;
    let answers =
        app.queue.ask(&served, Texts { prompts, each, config, stops, seed, goes_on: true })?;
    let choices = (0..number).map(|_| Choice::default()).collect();
    let head = json!({
        "id": id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": served.name,
    });
    let log_probs = log_probs.is_some();
    match stream {
        true => streamed(head, served, answers, choices, log_probs, count, with_usage).await,
        false => whole(head, &served, answers, choices, log_probs, count).await,
    }
}

fn encode(tokenizer: &Tokenizer, prompt: Prompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let texts = |texts: Vec<String>| {
        let tokens = texts.iter().map(|text| tokenizer.encode(text, true));
        let tokens = tokens.collect::<Result<Vec<_>, _>>();
        tokens.map_err(|error| ApiError::invalid(Some("prompt"), error.to_string()))
    };
    let prompts = match prompt {
        Prompt::Text(text) => texts(vec![text])?,
        Prompt::Texts(all) => texts(all)?,
        Prompt::Tokens(tokens) => vec![tokens],
        Prompt::Lists(lists) => lists,
    };
    if prompts.is_empty() || prompts.len() > PROMPTS || prompts.iter().any(Vec::is_empty) {
        let message = format!("`prompt` is one to {PROMPTS} texts of a token or more");
        return Err(ApiError::invalid(Some("prompt"), message));
    }
    Ok(prompts)
}

impl Choice {
    fn push(&mut self, tokenizer: &Tokenizer, piece: &Piece) {
        self.text.push_str(&piece.text);
        if let Some(place) = Place::of(piece) {
            self.log_probs.push(tokenizer, &place);
        }
    }

    fn end(&mut self, stopped: Stopped) {
        self.reason = if stopped == Stopped::Length { "length" } else { "stop" };
    }

    /// What has come since the last time.
    fn take(&mut self, number: usize, with_log_probs: bool) -> Value {
        let log_probs = if with_log_probs { self.log_probs.take() } else { Value::Null };
        let reason = Some(self.reason).filter(|reason| !reason.is_empty());
        let text = std::mem::take(&mut self.text);
        json!({ "index": number, "text": text, "logprobs": log_probs, "finish_reason": reason })
    }
}

/// The whole texts.
async fn whole(
    mut head: Value,
    served: &Served,
    mut answers: Answers,
    mut choices: Vec<Choice>,
    log_probs: bool,
    prompt: usize,
) -> Result<Response, ApiError> {
    let mut tokens = 0;
    while let Some((number, event)) = answers.next().await? {
        match event {
            Event::Piece(piece) => {
                tokens += usize::from(piece.token.is_some());
                choices[number].push(&served.tokenizer, &piece);
            }
            Event::Ended(stopped) => choices[number].end(stopped),
            Event::Failed(_) => unreachable!("it is an error"),
        }
    }
    let choices = choices.iter_mut().enumerate();
    head["choices"] = choices.map(|(number, choice)| choice.take(number, log_probs)).collect();
    head["usage"] = usage(prompt, tokens);
    Ok(Json(head).into_response())
}

/// The texts as they come.
async fn streamed(
    head: Value,
    served: Arc<Served>,
    answers: Answers,
    mut choices: Vec<Choice>,
    log_probs: bool,
    prompt: usize,
    with_usage: bool,
) -> Result<Response, ApiError> {
    let mut tokens = 0;
    stream::respond(answers, vec![], move |event| {
        let chunk = |choices: Value, usage: Value| {
            let mut chunk = head.clone();
            chunk["choices"] = choices;
            if with_usage {
                chunk["usage"] = usage;
            }
            chunk
        };
        let Some((number, event)) = event else {
            let last = || chunk(json!([]), usage(prompt, tokens));
            return with_usage.then(last).into_iter().collect();
        };
        let choice = &mut choices[number];
        match event {
            Event::Piece(piece) => {
                tokens += usize::from(piece.token.is_some());
                choice.push(&served.tokenizer, &piece);
                if piece.text.is_empty() && !log_probs {
                    return vec![];
                }
            }
            Event::Ended(stopped) => choice.end(stopped),
            Event::Failed(_) => return vec![],
        }
        vec![chunk(json!([choice.take(number, log_probs)]), Value::Null)]
    })
    .await
}
