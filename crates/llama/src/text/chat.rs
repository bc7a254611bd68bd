//! What a chat template is given: messages and options.

use super::ChatValue;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::collections::BTreeMap;

/// A message of a conversation, as datasets and chat templates have it.
///
/// ```
/// use burn_lora_llama::Message;
///
/// let message: Message = serde_json::from_str(r#"{"role": "user", "content": "Hi"}"#)?;
/// assert_eq!(message, Message::user("Hi"));
/// let parts = r#"{"role": "user", "content": [{"type": "text", "text": "Hi"}]}"#;
/// assert_eq!(message, serde_json::from_str(parts)?);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// The text; none for a message that only calls tools. In JSON it may also be a list of parts of
    /// type `text`, whose texts are joined.
    #[serde(default, deserialize_with = "content")]
    pub content: Option<String>,
    /// All other fields (`tool_calls`, `name`, ..), which the template gets as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, ChatValue>,
}

impl Message {
    /// A message of any role.
    ///
    /// ```
    /// use burn_lora_llama::Message;
    ///
    /// assert_eq!(Message::new("tool", "22 °C").role, "tool");
    /// ```
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), extra: BTreeMap::new() }
    }

    /// Instructions.
    ///
    /// ```
    /// # use burn_lora_llama::Message;
    /// assert_eq!(Message::system("Be brief.").role, "system");
    /// ```
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    ///
    /// ```
    /// # use burn_lora_llama::Message;
    /// assert_eq!(Message::user("Hi").role, "user");
    /// ```
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the assistant says.
    ///
    /// ```
    /// # use burn_lora_llama::Message;
    /// assert_eq!(Message::assistant("Hello!").role, "assistant");
    /// ```
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }

    #[derive(Deserialize)]
    struct Part {
        r#type: String,
        text: Option<String>,
    }

    let text = |part: Part| match part {
        Part { r#type, text: Some(text) } if r#type == "text" => Ok(text),
        Part { r#type, .. } => Err(D::Error::custom(format!(
            "`content` has a part of type `{type}`: only text is read"
        ))),
    };
    match Option::deserialize(deserializer) {
        Ok(None) => Ok(None),
        Ok(Some(Content::Text(text))) => Ok(Some(text)),
        Ok(Some(Content::Parts(parts))) => {
            parts.into_iter().map(text).collect::<Result<String, _>>().map(Some)
        }
        Err(_) => {
            Err(D::Error::custom("`content` is neither text nor a list of parts with a type"))
        }
    }
}

/// How a conversation is rendered.
///
/// ```
/// use burn_lora_llama::ChatOptions;
///
/// let options = ChatOptions::new()
///     .add_generation_prompt(true)
///     .variable("date_string", "26 Jul 2024");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    pub(super) add_generation_prompt: bool,
    pub(super) template: Option<String>,
    pub(super) tools: Option<ChatValue>,
    pub(super) documents: Option<ChatValue>,
    pub(super) variables: BTreeMap<String, ChatValue>,
}

impl ChatOptions {
    /// The messages alone: what a model is trained on.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// assert_eq!(ChatOptions::new(), ChatOptions::default());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends with what opens the assistant's turn: what a model is asked with.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// let options = ChatOptions::new().add_generation_prompt(true);
    /// ```
    pub fn add_generation_prompt(mut self, add: bool) -> Self {
        self.add_generation_prompt = add;
        self
    }

    /// Takes the template of this name, where a tokenizer has several. By default it is `tool_use`
    /// when there are tools and it exists, else `default`.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// let options = ChatOptions::new().template("rag");
    /// ```
    pub fn template(mut self, name: impl Into<String>) -> Self {
        self.template = Some(name.into());
        self
    }

    /// The JSON schemas of functions that the assistant may call.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// let tool = serde_json::json!({ "type": "function", "function": { "name": "now" } });
    /// let options = ChatOptions::new().tools([tool]);
    /// ```
    pub fn tools<T: Serialize>(mut self, tools: impl IntoIterator<Item = T>) -> Self {
        self.tools = Some(tools.into_iter().map(ChatValue::from_serialize).collect());
        self
    }

    /// Documents to answer from, with `title` and `text`.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// let document = serde_json::json!({ "title": "Rust", "text": "A language." });
    /// let options = ChatOptions::new().documents([document]);
    /// ```
    pub fn documents<T: Serialize>(mut self, documents: impl IntoIterator<Item = T>) -> Self {
        self.documents = Some(documents.into_iter().map(ChatValue::from_serialize).collect());
        self
    }

    /// Another variable of the template, such as `date_string` or `enable_thinking`.
    ///
    /// ```
    /// # use burn_lora_llama::ChatOptions;
    /// let options = ChatOptions::new().variable("enable_thinking", false);
    /// ```
    pub fn variable(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        self.variables.insert(name.into(), ChatValue::from_serialize(value));
        self
    }
}
