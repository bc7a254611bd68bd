//! Choices of how examples become samples.

use serde::{Deserialize, Serialize};

/// Which tokens of an example are trained on: those whose loss counts.
///
/// By default that is everything of a plain text, the completion of a prompt, and every turn of the
/// assistant in a conversation. A message of the assistant can also say so for itself, by `train`
/// (true or false) or `weight` (1 or 0).
///
/// ```
/// use burn_lora_train::data::TrainOn;
///
/// assert_eq!(serde_json::to_string(&TrainOn::LastTurn)?, r#""last_turn""#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// What answers the prompt: of a conversation that is not divided into prompt and completion, the
    /// last turn of the assistant.
    Completion,
    /// Every turn of the assistant, also those in a prompt.
    AssistantTurns,
    /// The last turn of the assistant.
    LastTurn,
    /// All tokens.
    Everything,
}

/// What becomes of an example with more than the maximum of tokens. All but
/// [`Error`](Self::Error) are counted in the [`Report`](super::Report).
///
/// ```
/// use burn_lora_train::data::Truncation;
///
/// assert_eq!(Truncation::default(), Truncation::KeepStart);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// Its first tokens are kept.
    #[default]
    KeepStart,
    /// Its last tokens are kept.
    KeepEnd,
    /// It is left out.
    Drop,
    /// It is an error.
    Error,
}

/// What becomes of an example that cannot be used.
///
/// ```
/// use burn_lora_train::data::OnError;
///
/// assert_eq!(OnError::default(), OnError::Fail);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is an error that names its file and line.
    #[default]
    Fail,
    /// It is left out, and counted in the [`Report`](super::Report).
    Skip,
}
