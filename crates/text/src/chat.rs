//! Input of a chat template: messages and options.

use crate::value::{ChatMap, ChatValue};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap};

/// A message of a conversation: a JSON object whose fields reach the chat template unchanged and in
/// order.
///
/// ```
/// use burn_lora_text::Message;
///
/// let message: Message = serde_json::from_str(r#"{"role": "user", "content": "Hi"}"#)?;
/// assert_eq!(message, Message::user("Hi"));
/// let parts = r#"{"role": "user", "content": [{"type": "text", "text": "Hi"}]}"#;
/// let message: Message = serde_json::from_str(parts)?;
/// assert_eq!(message.text().as_deref(), Some("Hi"));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ChatValue", into = "ChatValue")]
pub struct Message {
    fields: ChatMap,
}

impl Message {
    /// Creates a message of any role.
    ///
    /// ```
    /// use burn_lora_text::Message;
    ///
    /// assert_eq!(Message::new("tool", "22 °C").role(), "tool");
    /// ```
    pub fn new(role: impl Into<String>, content: impl Into<ChatValue>) -> Self {
        let role = ChatValue::Text(role.into());
        let fields = [("role".to_owned(), role), ("content".to_owned(), content.into())];
        Self { fields: fields.into() }
    }

    /// Creates a system message: instructions to the model.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::system("Be brief.").role(), "system");
    /// ```
    pub fn system(content: impl Into<ChatValue>) -> Self {
        Self::new("system", content)
    }

    /// Creates a message of the user.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::user("Hi").role(), "user");
    /// ```
    pub fn user(content: impl Into<ChatValue>) -> Self {
        Self::new("user", content)
    }

    /// Creates a message of the assistant.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::assistant("Hello!").role(), "assistant");
    /// ```
    pub fn assistant(content: impl Into<ChatValue>) -> Self {
        Self::new("assistant", content)
    }

    /// Sets a field (`tool_calls`, `name`, `reasoning_content`, ..), replacing its value if it
    /// exists.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// let message = Message::assistant("51").with("reasoning_content", "17 * 3 = 51");
    /// assert_eq!(message.get("reasoning_content").and_then(|text| text.as_str()), Some("17 * 3 = 51"));
    /// ```
    pub fn with(mut self, name: impl Into<String>, value: impl Into<ChatValue>) -> Self {
        let (name, value) = (name.into(), value.into());
        // The role stays text.
        if name != "role" || value.as_str().is_some() {
            self.fields.insert(name, value);
        }
        self
    }

    /// Role of the message: `system`, `user`, `assistant`, `tool` or any other that the template
    /// knows.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::user("Hi").role(), "user");
    /// ```
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(ChatValue::as_str).unwrap_or_default()
    }

    /// Returns a field by its name.
    ///
    /// ```
    /// # use burn_lora_text::{ChatValue, Message};
    /// assert_eq!(Message::user("Hi").get("content"), Some(&ChatValue::from("Hi")));
    /// ```
    pub fn get(&self, name: &str) -> Option<&ChatValue> {
        self.fields.get(name)
    }

    /// Returns the text of the content, or of all its parts together. `None` if there is no
    /// content, as in a message that only calls tools.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::user("Hi").text().as_deref(), Some("Hi"));
    /// ```
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self.get("content")? {
            ChatValue::Text(text) => Some(text.into()),
            ChatValue::List(parts) => {
                let texts =
                    parts.iter().filter_map(|part| part.get("text").unwrap_or(part).as_str());
                Some(texts.collect::<String>().into())
            }
            _ => None,
        }
    }

    /// All fields, in order.
    ///
    /// ```
    /// # use burn_lora_text::Message;
    /// assert_eq!(Message::user("Hi").fields().len(), 2);
    /// ```
    pub fn fields(&self) -> &ChatMap {
        &self.fields
    }
}

impl TryFrom<ChatValue> for Message {
    type Error = String;

    fn try_from(value: ChatValue) -> Result<Self, String> {
        let fields = match value {
            ChatValue::Map(fields) => fields,
            other => return Err(format!("a message is {}, but must be an object", other.kind())),
        };
        match fields.get("role") {
            Some(ChatValue::Text(_)) => Ok(Self { fields }),
            Some(other) => Err(format!("`role` is {}, but must be text", other.kind())),
            None => Err("a message has no `role`".into()),
        }
    }
}

impl From<Message> for ChatValue {
    fn from(message: Message) -> Self {
        Self::Map(message.fields)
    }
}

/// Options of rendering a conversation.
///
/// ```
/// use burn_lora_text::ChatOptions;
///
/// let options = ChatOptions::new()
///     .add_generation_prompt(true)
///     .variable("date_string", "26 Jul 2024");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatOptions {
    pub(crate) add_generation_prompt: bool,
    pub(crate) template: Option<String>,
    pub(crate) tools: Option<ChatValue>,
    pub(crate) documents: Option<ChatValue>,
    pub(crate) variables: BTreeMap<String, ChatValue>,
    /// Error of a value that JSON cannot represent.
    pub(crate) fault: Option<String>,
}

impl ChatOptions {
    /// Creates the default options: the messages without a generation prompt, as for training.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// assert_eq!(ChatOptions::new(), ChatOptions::default());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the text ends with the generation prompt, which opens the assistant's turn, as
    /// for generation.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// let options = ChatOptions::new().add_generation_prompt(true);
    /// ```
    pub fn add_generation_prompt(mut self, add: bool) -> Self {
        self.add_generation_prompt = add;
        self
    }

    /// Sets the name of the template, where a tokenizer has several. By default it is `tool_use` if
    /// there are tools and it exists, else `default`.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// let options = ChatOptions::new().template("rag");
    /// ```
    pub fn template(mut self, name: impl Into<String>) -> Self {
        self.template = Some(name.into());
        self
    }

    /// Sets the JSON schemas of the functions that the assistant may call.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// let tool = serde_json::json!({ "type": "function", "function": { "name": "now" } });
    /// let options = ChatOptions::new().tools([tool]);
    /// ```
    pub fn tools<T: Serialize>(mut self, tools: impl IntoIterator<Item = T>) -> Self {
        self.tools = Some(self.list("tools", tools));
        self
    }

    /// Sets the documents to answer from, with `title` and `text`.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// let document = serde_json::json!({ "title": "Rust", "text": "A language." });
    /// let options = ChatOptions::new().documents([document]);
    /// ```
    pub fn documents<T: Serialize>(mut self, documents: impl IntoIterator<Item = T>) -> Self {
        self.documents = Some(self.list("documents", documents));
        self
    }

    /// Sets another variable of the template, such as `date_string` or `enable_thinking`.
    ///
    /// ```
    /// # use burn_lora_text::ChatOptions;
    /// let options = ChatOptions::new().variable("enable_thinking", false);
    /// ```
    pub fn variable(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        let value = self.value(&name, value);
        self.variables.insert(name, value);
        self
    }

    /// All values that were set.
    pub(crate) fn given(&self) -> impl Iterator<Item = &ChatValue> {
        self.tools.iter().chain(&self.documents).chain(self.variables.values())
    }

    fn list<T: Serialize>(&mut self, name: &str, items: impl IntoIterator<Item = T>) -> ChatValue {
        ChatValue::List(items.into_iter().map(|item| self.value(name, item)).collect())
    }

    /// Converts a value for the template. An invalid one becomes an error when the template is
    /// rendered.
    fn value(&mut self, name: &str, value: impl Serialize) -> ChatValue {
        ChatValue::new(value).unwrap_or_else(|error| {
            self.fault = Some(format!("`{name}` is no value of JSON: {error}"));
            ChatValue::Null
        })
    }
}
