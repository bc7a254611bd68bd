//! `POST /v1/chat/completions`.

use super::{
    ApiError, App, Fields,
    logs::{self, Place},
    settings::{Settings, call_id, id, usage},
    stream,
};
use crate::{
    answers::{Answers, Texts},
    models::{Served, now},
    worker::Event,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use burn_lora_llama::Stopped;
use burn_lora_text::{ChatOptions, ChatValue, Message, Tokenizer, ToolCall, ToolStream};
use serde_json::{Value, json};
use std::sync::Arc;

/// A chat to answer.
struct Request {
    messages: Vec<Message>,
    /// Names of functions that the answer may call.
    tools: Vec<String>,
    /// Whether an answer has no more than one call.
    one_call: bool,
    options: ChatOptions,
    log_probs: bool,
}

/// What an answer has in common in all its parts.
struct Head {
    id: String,
    created: u64,
    model: String,
}

/// An answer in progress.
struct Choice {
    number: usize,
    content: String,
    tools: ToolStream,
    one_call: bool,
    calls: Vec<ToolCall>,
    log_probs: Vec<Value>,
    reason: &'static str,
}

pub(super) async fn chat(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    app.check_going()?;
    // Another name of the same, of which the newer one counts.
    let newer = fields.number("max_completion_tokens", (1, usize::MAX))?;
    let mut settings = Settings::take(&mut fields)?;
    settings.max_tokens = newer.or(settings.max_tokens);
    let served = app.served(&settings.model)?;
    let request = Request::take(&mut fields, &mut settings)?;
    fields.finish()?;
    let Request { messages, tools, one_call, options, log_probs } = request;
    let tokenizer = served.tokenizer.clone();
    let with_tools = !tools.is_empty();
    let prompt =
        super::blocking(move || encode(&tokenizer, &messages, &options, with_tools)).await?;
    let (count, prompts) = (prompt.len(), vec![prompt]);
    settings.fit(("messages", &prompts), app.config.max_length, None)?;
    let Settings { config, stops, seed, each, stream, usage: with_usage, .. } = settings;
    let texts = Texts { prompts, each, config, stops, seed, goes_on: false };
    let answers = app.queue.ask(&served, texts)?;
    let head = Head { id: id("chatcmpl"), created: now(), model: served.name.clone() };
    let choices = (0..each).map(|number| Choice::new(number, &tools, one_call)).collect();
    match stream {
        true => streamed(head, served, answers, choices, log_probs, count, with_usage).await,
        false => whole(head, &served, answers, choices, log_probs, count).await,
    }
}

impl Request {
    fn take(fields: &mut Fields, settings: &mut Settings) -> Result<Self, ApiError> {
        let messages: Vec<ChatValue> = fields.need("messages")?;
        if messages.is_empty() {
            return Err(ApiError::invalid(Some("messages"), "`messages` is empty"));
        }
        let messages = messages.into_iter().enumerate().map(message);
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let tools: Vec<ChatValue> = fields.take("tools")?.unwrap_or_default();
        let names = tools.iter().enumerate().map(|(number, tool)| {
            let name = tool.get("function").and_then(|function| function.get("name")?.as_str());
            let param = format!("tools[{number}]");
            let message = "a tool is {\"type\": \"function\", \"function\": {\"name\": .., ..}}";
            name.map(str::to_owned).ok_or_else(|| ApiError::invalid(Some(&param), message))
        });
        let mut names = names.collect::<Result<Vec<_>, _>>()?;
        let mut options = ChatOptions::new().add_generation_prompt(true);
        match fields.take::<ChatValue>("tool_choice")?.as_ref().map(ChatValue::as_str) {
            Some(Some("none")) => names.clear(),
            None | Some(Some("auto")) if names.is_empty() => {}
            None | Some(Some("auto")) => options = options.tools(&tools),
            Some(_) => {
                let message = "`tool_choice` is \"auto\" or \"none\": an answer is not forced";
                return Err(ApiError::invalid(Some("tool_choice"), message));
            }
        }
        let one_call = fields.take("parallel_tool_calls")? == Some(false);
        // Of vLLM: variables of the chat template.
        match fields.take("chat_template_kwargs")? {
            None => {}
            Some(ChatValue::Map(variables)) => {
                for (name, value) in variables {
                    options = options.variable(name, value);
                }
            }
            Some(_) => {
                let name = "chat_template_kwargs";
                return Err(ApiError::invalid(Some(name), format!("`{name}` is an object")));
            }
        }
        fields.refuse("functions", &json!([]))?;
        fields.refuse("function_call", &json!("none"))?;
        fields.refuse("modalities", &json!(["text"]))?;
        let log_probs = fields.take("logprobs")?.unwrap_or(false);
        let likeliest = fields.number("top_logprobs", (0, 20))?;
        if log_probs {
            let config = std::mem::take(&mut settings.config);
            settings.config = config.log_probs(likeliest.unwrap_or(0));
        } else if likeliest.is_some_and(|count| count > 0) {
            let message = "`top_logprobs` is for a request with `logprobs`";
            return Err(ApiError::invalid(Some("top_logprobs"), message));
        }
        Ok(Self { messages, tools: names, one_call, options, log_probs })
    }
}

/// A message as chat templates take it: contents of several texts are one, arguments of calls are objects, and a developer
/// is the system.
fn message((number, value): (usize, ChatValue)) -> Result<Message, ApiError> {
    let wrong = |reason: String| {
        let param = format!("messages[{number}]");
        ApiError::invalid(Some(&param), format!("`{param}`: {reason}"))
    };
    let ChatValue::Map(mut fields) = value else {
        return Err(wrong("a message is an object".into()));
    };
    if fields.get("role").and_then(ChatValue::as_str) == Some("developer") {
        fields.insert("role".into(), "system".into());
    }
    if let Some(ChatValue::List(parts)) = fields.get("content") {
        let texts = parts.iter().map(|part| {
            let is_text = part.get("type").and_then(ChatValue::as_str) == Some("text");
            part.get("text").and_then(ChatValue::as_str).filter(|_| is_text)
        });
        let only = || wrong("a content has parts of type `text` alone".into());
        let text = texts.collect::<Option<String>>().ok_or_else(only)?;
        fields.insert("content".into(), text.into());
    }
    if let Some(ChatValue::List(calls)) = fields.get_mut("tool_calls") {
        for call in calls {
            let ChatValue::Map(call) = call else { continue };
            let Some(ChatValue::Map(function)) = call.get_mut("function") else { continue };
            let Some(text) = function.get("arguments").and_then(ChatValue::as_str) else {
                continue;
            };
            // A call without arguments may have none at all.
            let text = if text.trim().is_empty() { "{}" } else { text };
            let found = serde_json::from_str::<ChatValue>(text);
            let found =
                found.map_err(|error| wrong(format!("the arguments of a call: {error}")))?;
            function.insert("arguments".into(), found);
        }
    }
    Message::try_from(ChatValue::Map(fields)).map_err(wrong)
}

/// Tokens of a chat, up to the answer.
fn encode(
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &ChatOptions,
    with_tools: bool,
) -> Result<Vec<u32>, ApiError> {
    let wrong =
        |error: burn_lora_text::TextError| ApiError::invalid(Some("messages"), error.to_string());
    let text = tokenizer.apply_chat_template(messages, options).map_err(wrong)?;
    if with_tools {
        let without = options.clone().tools::<Value>([]);
        if tokenizer.apply_chat_template(messages, &without).is_ok_and(|other| other == text) {
            let message = "the chat template of this model leaves tools out";
            return Err(ApiError::invalid(Some("tools"), message));
        }
    }
    // The template has written the special tokens.
    tokenizer.encode(&text, false).map_err(wrong)
}

impl Choice {
    fn new(number: usize, tools: &[String], one_call: bool) -> Self {
        let tools = ToolStream::new(tools.iter().cloned());
        let (content, calls, log_probs) = (String::new(), vec![], vec![]);
        Self { number, content, tools, one_call, calls, log_probs, reason: "stop" }
    }

    /// Adds text that is no call.
    fn push(&mut self, text: &str) -> String {
        let new = self.tools.push(text);
        self.content.push_str(&new);
        new
    }

    /// Ends the answer, and returns the text that had been held back.
    fn end(&mut self, stopped: Stopped) -> String {
        let tools = std::mem::replace(&mut self.tools, ToolStream::new([""; 0]));
        let (rest, calls) = tools.finish();
        self.content.push_str(&rest);
        self.calls = calls;
        if self.one_call {
            self.calls.truncate(1);
        }
        self.reason = match stopped {
            Stopped::Length => "length",
            _ if !self.calls.is_empty() => "tool_calls",
            _ => "stop",
        };
        rest
    }

    /// The calls, as a message has them.
    fn calls(&self, numbered: bool) -> Value {
        let calls = self.calls.iter().enumerate().map(|(index, call)| {
            let ToolCall { name, arguments } = call;
            let function = json!({ "name": name, "arguments": arguments });
            let mut call = json!({ "id": call_id(), "type": "function", "function": function });
            if numbered {
                call["index"] = index.into();
            }
            call
        });
        calls.collect()
    }

    fn document(&self, with_log_probs: bool) -> Value {
        let mut message = json!({ "role": "assistant", "content": self.content, "refusal": null });
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls(false);
            if self.content.is_empty() {
                message["content"] = Value::Null;
            }
        }
        let log_probs = with_log_probs.then(|| json!({ "content": self.log_probs }));
        json!({
            "index": self.number,
            "message": message,
            "logprobs": log_probs,
            "finish_reason": self.reason,
        })
    }
}

/// The whole answer.
async fn whole(
    head: Head,
    served: &Served,
    mut answers: Answers,
    mut choices: Vec<Choice>,
    log_probs: bool,
    prompt: usize,
) -> Result<Response, ApiError> {
    let mut tokens = 0;
    while let Some((number, event)) = answers.next().await? {
        let choice = &mut choices[number];
        match event {
            Event::Piece(piece) => {
                tokens += usize::from(piece.token.is_some());
                if let Some(place) = Place::of(&piece) {
                    choice.log_probs.push(logs::of_chat(&served.tokenizer, &place));
                }
                choice.push(&piece.text);
            }
            Event::Ended(stopped) => _ = choice.end(stopped),
            Event::Failed(_) => unreachable!("it is an error"),
        }
    }
    let choices: Vec<_> = choices.iter().map(|choice| choice.document(log_probs)).collect();
    let Head { id, created, model } = head;
    Ok(Json(json!({
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage(prompt, tokens),
    }))
    .into_response())
}

/// The answer as it comes.
async fn streamed(
    head: Head,
    served: Arc<Served>,
    answers: Answers,
    mut choices: Vec<Choice>,
    log_probs: bool,
    prompt: usize,
    with_usage: bool,
) -> Result<Response, ApiError> {
    let chunk = move |choices: Value| {
        let Head { id, created, model } = &head;
        let mut chunk = json!({
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": choices,
        });
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let delta = |number: usize, delta: Value, log_probs: Value, reason: Value| json!([{ "index": number, "delta": delta, "logprobs": log_probs, "finish_reason": reason }]);
    let begin = |number| {
        delta(number, json!({ "role": "assistant", "content": "" }), Value::Null, Value::Null)
    };
    let begins = (0..choices.len()).map(|number| chunk(begin(number))).collect();
    let mut tokens = 0;
    stream::respond(answers, begins, move |event| {
        let mut chunks = vec![];
        let Some((number, event)) = event else {
            if with_usage {
                let mut last = chunk(json!([]));
                last["usage"] = usage(prompt, tokens);
                chunks.push(last);
            }
            return chunks;
        };
        let choice: &mut Choice = &mut choices[number];
        match event {
            Event::Piece(piece) => {
                tokens += usize::from(piece.token.is_some());
                if let Some(place) = Place::of(&piece) {
                    choice.log_probs.push(logs::of_chat(&served.tokenizer, &place));
                }
                let text = choice.push(&piece.text);
                let places = std::mem::take(&mut choice.log_probs);
                if !text.is_empty() || !places.is_empty() {
                    let places = if log_probs { json!({ "content": places }) } else { Value::Null };
                    let text = json!({ "content": text });
                    chunks.push(chunk(delta(number, text, places, Value::Null)));
                }
            }
            Event::Ended(stopped) => {
                let rest = choice.end(stopped);
                if !rest.is_empty() {
                    let rest = json!({ "content": rest });
                    chunks.push(chunk(delta(number, rest, Value::Null, Value::Null)));
                }
                if !choice.calls.is_empty() {
                    let calls = json!({ "tool_calls": choice.calls(true) });
                    chunks.push(chunk(delta(number, calls, Value::Null, Value::Null)));
                }
                chunks.push(chunk(delta(number, json!({}), Value::Null, choice.reason.into())));
            }
            Event::Failed(_) => {}
        }
        chunks
    })
    .await
}
