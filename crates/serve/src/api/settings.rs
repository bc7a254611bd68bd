//! What chats and texts have in common: sampling, lengths, streams.

use super::{error::ApiError, fields::Fields};
use burn_lora_llama::GenerateConfig;
use rand::distr::{Alphanumeric, SampleString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Settings of an answer.
pub(super) struct Settings {
    pub model: String,
    /// Without a length.
    pub config: GenerateConfig,
    pub max_tokens: Option<usize>,
    pub stops: Arc<[String]>,
    pub seed: u64,
    /// Answers to each prompt.
    pub each: usize,
    pub stream: bool,
    /// Whether a stream ends with the number of its tokens.
    pub usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Most answers to a prompt.
const EACH: usize = 64;

/// Most stop strings.
const STOPS: usize = 16;

/// Most bytes of a stop string.
const STOP_BYTES: usize = 1024;

/// Fields for other ends than the answer.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

impl Settings {
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut config = GenerateConfig::new(1)
            .temperature(fields.number("temperature", (0.0, 2.0))?.unwrap_or(1.0))
            .min_p(fields.number("min_p", (0.0, 1.0))?.unwrap_or(0.0));
        // -1 is vLLM's word for all.
        let top_k = fields.number("top_k", (-1, i64::MAX))?.unwrap_or(0);
        config = config.top_k(usize::try_from(top_k).unwrap_or(0));
        config = match fields.number("top_p", (0.0, 1.0))?.unwrap_or(1.0) {
            // The fewest tokens are the likeliest one.
            0.0 => config.top_k(1),
            top_p => config.top_p(top_p),
        };
        if let Some(penalty) = fields.number("repetition_penalty", (0.01, 100.0))? {
            config = config.repetition_penalty(penalty);
        }
        if let Some(penalty) = fields.number("presence_penalty", (-2.0, 2.0))? {
            config = config.presence_penalty(penalty);
        }
        if let Some(penalty) = fields.number("frequency_penalty", (-2.0, 2.0))? {
            config = config.frequency_penalty(penalty);
        }
        let stops = match fields.take("stop")? {
            None => vec![],
            Some(OneOrMore::One(stop)) => vec![stop],
            Some(OneOrMore::More(stops)) => stops,
        };
        if stops.len() > STOPS || stops.iter().any(|s| s.is_empty() || s.len() > STOP_BYTES) {
            let message = format!(
                "`stop` has up to {STOPS} texts of up to {STOP_BYTES} bytes, of which none is empty"
            );
            return Err(ApiError::invalid(Some("stop"), message));
        }
        fields.refuse("logit_bias", &json!({}))?;
        fields.refuse("response_format", &json!({ "type": "text" }))?;
        // What vLLM takes, as it is.
        for (name, usual) in [
            ("skip_special_tokens", true),
            ("add_generation_prompt", true),
            ("spaces_between_special_tokens", true),
            ("ignore_eos", false),
            ("echo", false),
        ] {
            fields.refuse(name, &json!(usual))?;
        }
        fields.refuse("min_tokens", &json!(0))?;
        fields.ignore(&IGNORED);
        let options = fields.take::<StreamOptions>("stream_options")?;
        let stream = fields.take("stream")?.unwrap_or(false);
        if options.is_some() && !stream {
            let message = "`stream_options` is for a request with `stream`";
            return Err(ApiError::invalid(Some("stream_options"), message));
        }
        Ok(Self {
            model: fields.need("model")?,
            config,
            max_tokens: fields.number("max_tokens", (1, usize::MAX))?,
            stops: stops.into(),
            seed: fields.take::<i64>("seed")?.map_or_else(rand::random, |seed| seed as u64),
            each: fields.number("n", (1, EACH))?.unwrap_or(1),
            stream,
            usage: options.is_some_and(|options| options.include_usage),
        })
    }

    /// Sets the length of the answers to prompts, of which each has its room in the model.
    pub fn fit(
        &mut self,
        (param, prompts): (&str, &[Vec<u32>]),
        most: usize,
        default: Option<usize>,
    ) -> Result<(), ApiError> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let room = most.saturating_sub(longest);
        let wanted = self.max_tokens.or(default);
        if room == 0 || wanted.is_some_and(|wanted| self.max_tokens.is_some() && wanted > room) {
            let answer =
                self.max_tokens.map_or(String::new(), |more| format!(" and {more} of answer"));
            let message = format!(
                "This model's maximum context length is {most} tokens. You requested {longest} tokens of \
                 prompt{answer}. Please shorten one of them."
            );
            return Err(ApiError::too_long(param, message));
        }
        let config = std::mem::take(&mut self.config);
        self.config = config.max_new_tokens(wanted.unwrap_or(room).min(room));
        Ok(())
    }
}

/// The number of tokens of an answer.
pub(super) fn usage(prompt: usize, answer: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    })
}

/// An id of a call: Mistral's templates take no other than nine letters and digits.
pub(super) fn call_id() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 9)
}

/// An id of an answer.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}-{:032x}", rand::random::<u128>())
}
