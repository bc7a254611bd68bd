//! Chat templates: Jinja in the dialect of transformers.

use crate::{
    chat::{ChatOptions, Message},
    error::TextError,
    jinja::{self, Limits, Template, Value},
    value::{ChatMap, ChatValue},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Unicode noncharacters, which text does not contain, around the output of a `{% generation %}`
/// block.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// Fields of messages that hold reasoning; the first existing one counts.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A chat template: Jinja in the dialect of transformers.
///
/// Beside Jinja it supports `raise_exception`, `strftime_now`, Python's `tojson` and methods of
/// strings and dictionaries, `break` and `continue`, and `{% generation %}` blocks around the
/// assistant's text.
///
/// ```
/// use burn_lora_text::{ChatOptions, ChatTemplate, Message};
///
/// let template = ChatTemplate::new(
///     "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}",
/// )?;
/// let messages = [Message::user("Hi"), Message::assistant("Hello!")];
/// let text = template.render(&messages, &ChatOptions::new())?;
/// assert_eq!(text, "<|user|>Hi<|assistant|>Hello!");
/// # Ok::<_, burn_lora_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: Arc<str>,
    /// The parsed template, or the reason of the error.
    template: Result<Arc<Template>, String>,
    generation: bool,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// ```
    /// # use burn_lora_text::ChatTemplate;
    /// let error = ChatTemplate::new("{% if %}").unwrap_err();
    /// assert!(error.to_string().contains("chat_template:1"));
    /// ```
    ///
    /// # Errors
    /// [`TextError::Template`] with the line if the template is no valid Jinja.
    pub fn new(source: &str) -> Result<Self, TextError> {
        let template = Self::lenient(source);
        template.template()?;
        Ok(template)
    }

    /// Parses a template, and defers errors to its rendering: a tokenizer is useful without a
    /// template.
    pub(crate) fn lenient(source: &str) -> Self {
        let template = Template::parse(source);
        let generation = template.as_ref().is_ok_and(Template::has_generation_blocks);
        let template = template.map(Arc::new).map_err(|error| error.to_string());
        Self { source: source.into(), template, generation }
    }

    fn template(&self) -> Result<&Template, TextError> {
        let broken = |reason: &String| TextError::Template { reason: reason.clone() };
        self.template.as_deref().map_err(broken)
    }

    /// Source text of the template.
    ///
    /// ```
    /// # use burn_lora_text::ChatTemplate;
    /// assert_eq!(ChatTemplate::new("{{ messages }}")?.source(), "{{ messages }}");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns `true` if the template marks the assistant's text by `{% generation %}` blocks.
    ///
    /// ```
    /// # use burn_lora_text::ChatTemplate;
    /// let template = ChatTemplate::new("{% generation %}{{ messages }}{% endgeneration %}")?;
    /// assert!(template.has_generation_blocks());
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn has_generation_blocks(&self) -> bool {
        self.generation
    }

    /// Renders messages. Special tokens have to be set as variables;
    /// [`Tokenizer::apply_chat_template`](crate::Tokenizer::apply_chat_template) sets them.
    ///
    /// ```
    /// # use burn_lora_text::{ChatOptions, ChatTemplate, Message};
    /// let template = ChatTemplate::new("{{ bos_token }}{{ messages[0].content }}")?;
    /// let options = ChatOptions::new().variable("bos_token", "<s>");
    /// assert_eq!(template.render(&[Message::user("Hi")], &options)?, "<s>Hi");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Template`] if the template raises an error or cannot be rendered.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, TextError> {
        self.render_marked(messages, options, &BTreeMap::new()).map(|(text, _)| text)
    }

    /// Renders messages; returns the text, and the byte ranges of its `{% generation %}` blocks.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        special: &BTreeMap<String, String>,
    ) -> Result<(String, Vec<Range<usize>>), TextError> {
        if let Some(reason) = &options.fault {
            return Err(TextError::Template { reason: reason.clone() });
        }
        if self.generation {
            refuse_marks(messages, options)?;
        }
        let wrong = |error: jinja::Error| TextError::Template { reason: error.to_string() };
        let value = |value: &ChatValue| Value::given(value).map_err(wrong);
        let messages = ChatValue::List(messages.iter().map(given).collect());
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in special {
            variables.insert(name, token.as_str().into());
        }
        for (name, given) in &options.variables {
            variables.insert(name, value(given)?);
        }
        let none = ChatValue::Null;
        variables.insert("messages", value(&messages)?);
        variables.insert("tools", value(options.tools.as_ref().unwrap_or(&none))?);
        variables.insert("documents", value(options.documents.as_ref().unwrap_or(&none))?);
        variables.insert("add_generation_prompt", options.add_generation_prompt.into());

        let size = size(&messages) + options.given().map(size).sum::<usize>();
        let template = self.template()?;
        let variables = variables.into_iter().collect();
        let text = template.render(variables, [OPEN, CLOSE], Limits::of(size)).map_err(wrong)?;
        if self.generation { split(&text) } else { Ok((text, vec![])) }
    }
}

/// The message as the template gets it, as in transformers: without fields that are `null`, and
/// with its reasoning under each of the names that templates use.
fn given(message: &Message) -> ChatValue {
    let own = message.fields().iter().filter(|(_, value)| !value.is_null());
    let own = own.map(|(name, value)| (name.clone(), value.clone()));
    let reasoning = REASONING.iter().find_map(|name| message.get(name).filter(|v| !v.is_null()));
    let Some(reasoning) = reasoning else { return own.collect::<ChatMap>().into() };
    let mut fields = ChatMap::from([("thinking".to_owned(), reasoning.clone())]);
    fields.extend(own);
    fields.insert("reasoning_content".to_owned(), reasoning.clone());
    fields.into()
}

/// Approximate size of a value in bytes.
fn size(value: &ChatValue) -> usize {
    16 + match value {
        ChatValue::Text(text) => text.len(),
        ChatValue::List(items) => items.iter().map(size).sum(),
        ChatValue::Map(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => 0,
    }
}

/// Removes the marks from a text; returns it with the ranges between them.
fn split(marked: &str) -> Result<(String, Vec<Range<usize>>), TextError> {
    let (mut text, mut spans, mut open) = (String::new(), vec![], None);
    for char in marked.chars() {
        match (char, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                spans.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => {
                let reason = "a `{% generation %}` block in another: take it out";
                return Err(TextError::Template { reason: reason.into() });
            }
            (char, _) => text.push(char),
        }
    }
    Ok((text, spans))
}

/// Rejects messages that contain a mark.
fn refuse_marks(messages: &[Message], options: &ChatOptions) -> Result<(), TextError> {
    let given = (messages, &options.tools, &options.documents, &options.variables);
    let json = serde_json::to_string(&given).unwrap_or_default();
    if !json.contains([OPEN, CLOSE]) {
        return Ok(());
    }
    let reason = "a message has the noncharacter U+FDD0 or U+FDD1, which marks the assistant's text \
                  here: take it out";
    Err(TextError::Template { reason: reason.into() })
}
