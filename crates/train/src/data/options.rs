//! Options of the conversion of examples to samples.

use serde::{Deserialize, Serialize};

/// Tokens of an example that are trained on: those whose loss counts.
///
/// By default these are all tokens of a plain text, the completion of a prompt, and every turn of
/// the assistant in a conversation. A message of the assistant can also say so for itself, by
/// `train` (true or false) or `weight` (1 or 0).
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
    /// The answer to the prompt: of a conversation that is not divided into prompt and completion,
    /// the last turn of the assistant.
    Completion,
    /// Every turn of the assistant, also those in a prompt.
    AssistantTurns,
    /// The last turn of the assistant.
    LastTurn,
    /// All tokens.
    Everything,
}

/// Handling of an example with more than the maximum number of tokens. All but
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
    /// Keeps its first tokens.
    #[default]
    KeepStart,
    /// Keeps its last tokens.
    KeepEnd,
    /// Leaves it out.
    Drop,
    /// Returns an error.
    Error,
}

/// Handling of an example that cannot be used.
///
/// ```
/// use burn_lora_train::data::OnError;
///
/// assert_eq!(OnError::default(), OnError::Fail);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Returns an error that names its file and line.
    #[default]
    Fail,
    /// Leaves it out, and counts it in the [`Report`](super::Report).
    Skip,
}
