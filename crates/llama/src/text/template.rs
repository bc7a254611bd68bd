//! Chat templates: Jinja as transformers runs it.

use super::{ChatMap, ChatOptions, ChatValue, Message, python};
use crate::error::LlamaError;
use minijinja::Environment;
use std::{collections::BTreeMap, error::Error, ops::Range, sync::Arc};

/// The name that errors of templates mention.
const NAME: &str = "chat_template";

/// Noncharacters of Unicode, which no text has, around what a `{% generation %}` block wrote.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// What messages call their reasoning; the first that is there counts.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The filter that writes them.
const FILTER: &str = "_generation";

/// A chat template: Jinja in the dialect of transformers.
///
/// Beside Jinja it has `raise_exception`, `strftime_now`, Python's `tojson` and methods of strings
/// and dictionaries, `break` and `continue`, and `{% generation %}` blocks around what the assistant
/// wrote.
///
/// ```
/// use burn_lora_llama::{ChatOptions, ChatTemplate, Message};
///
/// let template = ChatTemplate::new(
///     "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}",
/// )?;
/// let messages = [Message::user("Hi"), Message::assistant("Hello!")];
/// let text = template.render(&messages, &ChatOptions::new())?;
/// assert_eq!(text, "<|user|>Hi<|assistant|>Hello!");
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: Arc<str>,
    /// The template, or why it could not be read.
    environment: Result<Arc<Environment<'static>>, String>,
    generation: bool,
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// ```
    /// # use burn_lora_llama::ChatTemplate;
    /// let error = ChatTemplate::new("{% if %}").unwrap_err();
    /// assert!(error.to_string().contains("chat_template:1"));
    /// ```
    ///
    /// # Errors
    /// A template that is no Jinja, with the line.
    pub fn new(source: &str) -> Result<Self, LlamaError> {
        let template = Self::lenient(source);
        template.environment()?;
        Ok(template)
    }

    /// A template whose errors wait until it is rendered: a tokenizer is of use without.
    pub(super) fn lenient(source: &str) -> Self {
        let (rewritten, generation) = rewrite(source);
        let environment = environment(rewritten).map(Arc::new);
        Self { source: source.into(), environment, generation }
    }

    fn environment(&self) -> Result<&Environment<'static>, LlamaError> {
        let template = |reason: &String| LlamaError::Template { reason: reason.clone() };
        self.environment.as_deref().map_err(template)
    }

    /// The text of the template.
    ///
    /// ```
    /// # use burn_lora_llama::ChatTemplate;
    /// assert_eq!(ChatTemplate::new("{{ messages }}")?.source(), "{{ messages }}");
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks what the assistant wrote by `{% generation %}` blocks.
    ///
    /// ```
    /// # use burn_lora_llama::ChatTemplate;
    /// let template = ChatTemplate::new("{% generation %}{{ messages }}{% endgeneration %}")?;
    /// assert!(template.has_generation_blocks());
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    pub fn has_generation_blocks(&self) -> bool {
        self.generation
    }

    /// Renders messages. Special tokens are variables here;
    /// [`Tokenizer::apply_chat_template`](crate::Tokenizer::apply_chat_template) sets them.
    ///
    /// ```
    /// # use burn_lora_llama::{ChatOptions, ChatTemplate, Message};
    /// let template = ChatTemplate::new("{{ bos_token }}{{ messages[0].content }}")?;
    /// let options = ChatOptions::new().variable("bos_token", "<s>");
    /// assert_eq!(template.render(&[Message::user("Hi")], &options)?, "<s>Hi");
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// What the template raises, and what it does that cannot be done.
    pub fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, LlamaError> {
        self.render_marked(messages, options, &BTreeMap::new()).map(|(text, _)| text)
    }

    /// The text, and where in it (in bytes) the `{% generation %}` blocks are.
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        special: &BTreeMap<String, String>,
    ) -> Result<(String, Vec<Range<usize>>), LlamaError> {
        if let Some(reason) = &options.fault {
            return Err(LlamaError::Template { reason: reason.clone() });
        }
        if self.generation {
            refuse_marks(messages, options)?;
        }
        let mut variables: BTreeMap<&str, ChatValue> =
            special.iter().map(|(name, token)| (name.as_str(), token.as_str().into())).collect();
        variables.extend(options.variables.iter().map(|(name, value)| (&**name, value.clone())));
        variables.insert("messages", messages.iter().map(given).collect::<Vec<_>>().into());
        variables.insert("tools", options.tools.clone().unwrap_or_default());
        variables.insert("documents", options.documents.clone().unwrap_or_default());
        variables.insert("add_generation_prompt", options.add_generation_prompt.into());

        let template = self.environment()?.get_template(NAME);
        let text = template.and_then(|template| template.render(variables));
        let text = text.map_err(|error| LlamaError::Template { reason: describe(&error) })?;
        if self.generation { split(&text) } else { Ok((text, vec![])) }
    }
}

/// The message that a template is given, as by transformers: without the fields that are `null`, and
/// with its reasoning by each of the names that templates have for it.
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

fn environment(source: String) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_formatter(python::format);
    environment.set_unknown_method_callback(python::method);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", python::string);
    environment.add_test("iterable", python::is_iterable);
    environment.add_filter(FILTER, |text: &str| format!("{OPEN}{text}{CLOSE}"));
    environment.add_template_owned(NAME, source).map_err(|error| describe(&error))?;
    Ok(environment)
}

/// An error with what caused it: one inside a macro says what is wrong only there.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// `{% generation %}` as a filter block: its tags trim whitespace as all others do, and its body is
/// in the scope of what is around it.
fn rewrite(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::new(), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out += before;
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[2..end];
        let name = inner.trim_matches(['-', '+']).trim();
        let new = match name {
            "generation" => format!("filter {FILTER}"),
            "endgeneration" => "endfilter".into(),
            _ => {
                out += "{%";
                rest = &tag[2..];
                continue;
            }
        };
        found = true;
        out += &format!("{{%{}%}}", inner.replacen(name, &new, 1));
        rest = &tag[end + 2..];
    }
    (out + rest, found)
}

/// Takes the marks out of a text.
fn split(marked: &str) -> Result<(String, Vec<Range<usize>>), LlamaError> {
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
                return Err(LlamaError::Template { reason: reason.into() });
            }
            (char, _) => text.push(char),
        }
    }
    Ok((text, spans))
}

/// What is read as a mark must not come from a message.
fn refuse_marks(messages: &[Message], options: &ChatOptions) -> Result<(), LlamaError> {
    let given = (messages, &options.tools, &options.documents, &options.variables);
    let json = serde_json::to_string(&given).unwrap_or_default();
    if !json.contains([OPEN, CLOSE]) {
        return Ok(());
    }
    let reason = "a message has the noncharacter U+FDD0 or U+FDD1, which marks the assistant's text \
                  here: take it out";
    Err(LlamaError::Template { reason: reason.into() })
}
