//! Log-probabilities, as the two ways of OpenAI's API say them.

use crate::worker::Piece;
use burn_lora_llama::LogProbs;
use burn_lora_text::Tokenizer;
use serde_json::{Map, Value, json};

/// A token of an answer with the log-probabilities of its place.
pub(super) struct Place<'a> {
    token: u32,
    log_probs: &'a LogProbs,
}

impl<'a> Place<'a> {
    pub fn of(piece: &'a Piece) -> Option<Self> {
        Some(Self { token: piece.token?, log_probs: piece.log_probs.as_ref()? })
    }
}

fn shown(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.decode(&[token], false).unwrap_or_default()
}

pub(super) fn of_chat(tokenizer: &Tokenizer, place: &Place<'_>) -> Value {
    let one = |token: u32, log_prob: f32| {
        let text = shown(tokenizer, token);
        json!({ "token": text, "logprob": log_prob, "bytes": text.as_bytes() })
    };
    let mut found = one(place.token, place.log_probs.taken);
    let likeliest = place.log_probs.likeliest.iter();
    found["top_logprobs"] = likeliest.map(|(token, log_prob)| one(*token, *log_prob)).collect();
    found
}

/// Those of a text.
#[derive(Default)]
pub(super) struct OfText {
    tokens: Vec<String>,
    log_probs: Vec<f32>,
    likeliest: Vec<Map<String, Value>>,
    offsets: Vec<usize>,
    /// Characters so far.
    length: usize,
}

impl OfText {
    pub fn push(&mut self, tokenizer: &Tokenizer, place: &Place<'_>) {
        let text = shown(tokenizer, place.token);
        self.offsets.push(self.length);
        self.length += text.chars().count();
        self.tokens.push(text);
        self.log_probs.push(place.log_probs.taken);
        // With the one that was taken, as OpenAI's.
        let taken = (place.token, place.log_probs.taken);
        let all = place.log_probs.likeliest.iter().copied().chain([taken]);
        self.likeliest.push(
            all.map(|(token, log_prob)| (shown(tokenizer, token), log_prob.into())).collect(),
        );
    }

    /// Takes what was pushed since the last time.
    pub fn take(&mut self) -> Value {
        let Self { tokens, log_probs, likeliest, offsets, .. } =
            std::mem::replace(self, Self { length: self.length, ..Self::default() });
        json!({
            "tokens": tokens,
            "token_logprobs": log_probs,
            "top_logprobs": likeliest,
            "text_offset": offsets,
        })
    }
}
