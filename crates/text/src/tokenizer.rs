//! The tokenizer of a model: encoding and decoding of text.

use crate::{
    chat::{ChatOptions, Message},
    check,
    error::TextError,
    files::{self, Files},
    sources, special,
    template::ChatTemplate,
};
use burn_lora_io::{caught, escaped};
use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};
use tokenizers::{ModelWrapper, PostProcessor, PostProcessorWrapper};

/// transformers' name of the general template.
const DEFAULT: &str = "default";

/// Names of tokens used only for padding, in the order of the search.
const PADS: [&str; 2] = ["<|finetune_right_pad_id|>", "<pad>"];

/// A tokenizer with its special tokens and chat templates. A clone is cheap.
///
/// Plain text and chats differ in how they begin. [`encode`](Self::encode) with
/// `add_special_tokens` adds the tokens that the tokenizer puts around a plain text, mostly the
/// first one (bos). A chat template writes bos itself, so that a rendered chat is encoded without
/// `add_special_tokens`.
///
/// ```
/// use burn_lora_text::{ChatOptions, Message, Tokenizer};
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let ids = tokenizer.encode("hello world", true)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "hello world");
///
/// let options = ChatOptions::new().add_generation_prompt(true);
/// let prompt = tokenizer.apply_chat_template(&[Message::user("hello")], &options)?;
/// assert_eq!(prompt, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<_, burn_lora_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    parts: Arc<Parts>,
    templates: BTreeMap<String, ChatTemplate>,
    /// `true` if the template was replaced, and is not that of the files.
    replaced: bool,
    /// `true` if it is not the base's: tokens were added, or it was saved with an adapter.
    changed: bool,
}

#[derive(Debug)]
struct Parts {
    /// Without its post-processor, which trims spaces off offsets, and without padding and
    /// truncation, which files keep from their last use.
    model: tokenizers::Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    vocab_size: usize,
    /// By their names in templates: `bos_token`, ..
    special: BTreeMap<String, String>,
    eos_token_ids: Vec<u32>,
    /// Maximal growth of a text's length before it is split, as a factor.
    growth: usize,
    files: Files,
}

/// Maximal length of a text in bytes before it is split: each byte takes several words of memory.
const NORMALIZED: usize = 1 << 28;

impl Tokenizer {
    /// Loads a tokenizer from a folder in Hugging Face's layout (`tokenizer.json` and the files
    /// beside it, or SentencePiece's `tokenizer.model`), from a `.gguf` file with a byte-level or
    /// SentencePiece BPE, or with the feature `hub` by the id of a model. An adapter's folder or id
    /// without a tokenizer has that of its base.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Io`], [`TextError::Format`] or [`TextError::Field`] for a file that is missing
    /// or malformed, or a kind of tokenizer that is not supported, with the file and the field;
    /// [`TextError::Hub`] for a model that the hub did not provide. A malformed chat template is an
    /// error where it is used.
    pub fn from_pretrained(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = &burn_lora_io::hub::resolve(path)?;
        Self::from_files(sources::files(path)?)
    }

    /// Loads the tokenizer that was saved with an adapter, if its folder has one, else that of the base.
    /// Tokens that end a generation are those of the adapter's `generation_config.json`, else of the base's, and
    /// of `config.json`.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let folder = tempfile::tempdir().unwrap();
    /// let mut tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// tokenizer.add_tokens(["<tool>"])?;
    /// tokenizer.save(folder.path())?; // beside an adapter
    /// let tokenizer = Tokenizer::from_adapter(folder.path(), "../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.token_to_id("<tool>"), Some(286));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_adapter(
        adapter: impl AsRef<Path>,
        base: impl AsRef<Path>,
    ) -> Result<Self, TextError> {
        let adapter = &burn_lora_io::hub::resolve(adapter.as_ref())?;
        let base = &burn_lora_io::hub::resolve(base.as_ref())?;
        let files = sources::adapter_files(adapter, base)?;
        Ok(Self { changed: sources::has_own(adapter), ..Self::from_files(files)? })
    }

    /// Returns `true` if the tokenizer is not the one of its base model: tokens were added, or it was
    /// saved with an adapter. The trainer saves such a tokenizer beside the adapter.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    fn from_files(files: Files) -> Result<Self, TextError> {
        let path = files.path(files::TOKENIZER);
        let bytes = files.bytes.get(files::TOKENIZER).map_or(&[][..], |bytes| bytes);
        let wrong = |reason: String| TextError::format(&path, escaped(&reason));
        let growth = check::steps(&files.json(files::TOKENIZER)?).map_err(wrong)?;
        // The crate panics on some files, such as those with merges shorter than their prefix.
        let read = caught(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(|_| contradicts());
        let mut model = read.and_then(|read| read.map_err(|e| e.to_string())).map_err(wrong)?;
        model.with_padding(None);
        model.with_truncation(None).map_err(|error| TextError::format(&path, error))?;

        let special = caught(|| special::tokens(&files, &mut model));
        let special = special.map_err(|_| wrong(contradicts()))??;
        let post_processor = special::post_processor(&files, &model, &special)?;
        model.with_post_processor(None::<PostProcessorWrapper>);
        let eos = special.get("eos_token").and_then(|token| model.token_to_id(token));
        let eos_token_ids = special::eos_token_ids(&files, eos)?;
        let vocabulary = model.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
        let templates = files.templates()?;
        let templates =
            templates.iter().map(|(name, text)| (name.clone(), ChatTemplate::lenient(text)));
        let templates = templates.collect();
        let parts =
            Parts { model, post_processor, vocab_size, special, eos_token_ids, growth, files };
        Ok(Self { parts: Arc::new(parts), templates, replaced: false, changed: false })
    }

    /// Tokens outside the model of the tokenizer, or special, by their ids.
    pub(crate) fn added_tokens(&self) -> Vec<(u32, tokenizers::AddedToken)> {
        self.parts.model.get_added_tokens_decoder().into_iter().collect()
    }

    /// Encodes a text to tokens. Names of special tokens in the text become these tokens.
    ///
    /// `add_special_tokens` adds the tokens around a text that `tokenizer.json` specifies, or, if
    /// it specifies none, `add_bos_token` and `add_eos_token` of `tokenizer_config.json`.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.encode("hello<|im_end|>", false)?.len(), 2);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] for text that the tokenizer cannot encode; [`TextError::Format`]
    /// for a tokenizer that fails on it.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.check_length(text)?;
        self.run(|model| {
            let encoding = model.encode_fast(text, false)?;
            let encoding = match &self.parts.post_processor {
                Some(post) if add_special_tokens => post.process(encoding, None, true)?,
                _ => encoding,
            };
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Encodes a text without special tokens around it, and returns the tokens and the byte range
    /// of each; tokens that share a character all have the range of that character.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let (ids, offsets) = tokenizer.encode_with_offsets("hello world")?;
    /// assert_eq!((ids.len(), offsets), (2, vec![0..5, 5..11]));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), TextError> {
        self.check_length(text)?;
        let encoding = self.run(|model| model.encode(text, false))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok((encoding.get_ids().to_vec(), offsets.collect()))
    }

    /// Encodes words one by one, between the special tokens around a text, and returns the tokens and the word of each,
    /// as transformers' tokenizers do with `is_split_into_words`; special tokens belong to no word.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let (ids, words) = tokenizer.encode_words(&["hello", "EU"])?;
    /// assert_eq!((ids.len(), words), (3, vec![Some(0), Some(1), Some(1)]));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_words<W: AsRef<str>>(
        &self,
        words: &[W],
    ) -> Result<(Vec<u32>, Vec<Option<usize>>), TextError> {
        words.iter().try_for_each(|word| self.check_length(word.as_ref()))?;
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let encoding = self.run(|model| {
            let encoding = model.encode(words.as_slice(), false)?;
            match &self.parts.post_processor {
                Some(post) => post.process(encoding, None, true),
                None => Ok(encoding),
            }
        })?;
        let owners = encoding.get_word_ids().iter().map(|word| word.map(|word| word as usize));
        Ok((encoding.get_ids().to_vec(), owners.collect()))
    }

    /// Decodes tokens to text. Ids outside of the vocabulary, such as those to which a model's
    /// embedding was padded, have no text.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let ids = tokenizer.encode("hello<|im_end|>", false)?;
    /// assert_eq!(tokenizer.decode(&ids, false)?, "hello<|im_end|>");
    /// assert_eq!(tokenizer.decode(&ids, true)?, "hello");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] for tokens that the tokenizer's decoder refuses;
    /// [`TextError::Format`] for a tokenizer that fails on them.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.run(|model| model.decode(ids, skip_special_tokens))
    }

    /// Runs a function of the crate, which panics on steps of some files, such as a decoder that
    /// strips more than a token has.
    fn run<T>(
        &self,
        run: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T, TextError> {
        match caught(|| run(&self.parts.model)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(TextError::Tokenizer { reason: escaped(&error.to_string()).to_string() })
            }
            Err(_) => {
                let path = self.parts.files.path(files::TOKENIZER);
                Err(TextError::format(&path, contradicts()))
            }
        }
    }

    fn check_length(&self, text: &str) -> Result<(), TextError> {
        if text.len().saturating_mul(self.parts.growth) <= NORMALIZED || self.parts.growth == 1 {
            return Ok(());
        }
        let path = self.parts.files.path(files::TOKENIZER);
        let reason = format!(
            "its `normalizer` may make a text {} times as long, which is too much for one of {} bytes",
            self.parts.growth,
            text.len(),
        );
        Err(TextError::format(&path, reason))
    }

    /// Returns the id of a token.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.parts.model.token_to_id(token)
    }

    /// Returns the token with an id, as the vocabulary writes it: with `Ġ` or `▁` for a space.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.id_to_token(2).as_deref(), Some("<|im_end|>"));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.parts.model.id_to_token(id)
    }

    /// Kind of the tokenizer's model: `BPE`, `Unigram`, `WordPiece` or `WordLevel`.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.kind(), "BPE");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn kind(&self) -> &'static str {
        match self.parts.model.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::Unigram(_) => "Unigram",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
        }
    }

    /// Size of the vocabulary: the highest token id plus one. A model's embedding may have more
    /// rows.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.vocab_size(), 286);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn vocab_size(&self) -> usize {
        self.parts.vocab_size
    }

    /// Id of the token that begins a text, if there is one.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.bos_token_id(), None);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn bos_token_id(&self) -> Option<u32> {
        self.special("bos_token")
    }

    /// Id of the token that ends a text: the tokenizer's own, else the first of
    /// [`eos_token_ids`](Self::eos_token_ids).
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.eos_token_id(), Some(2));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn eos_token_id(&self) -> Option<u32> {
        self.parts.eos_token_ids.first().copied()
    }

    /// Ids of all tokens that end a generation: the tokenizer's own and those of
    /// `generation_config.json` and `config.json`; from a GGUF file the end of a text, of a turn
    /// and of a message that calls tools.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.eos_token_ids(), [2]);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.parts.eos_token_ids
    }

    /// Id of the padding token: the tokenizer's own, else `<|finetune_right_pad_id|>` or `<pad>` if
    /// the vocabulary has one, else the end of a text. As that may be a token of the text too,
    /// padding has to be masked by position, never by id.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.pad_token_id(), Some(0));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn pad_token_id(&self) -> Option<u32> {
        let known = || PADS.iter().find_map(|pad| self.token_to_id(pad));
        self.special("pad_token").or_else(known).or(self.eos_token_id())
    }

    /// Id of the token for unknown text, if there is one.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.unk_token_id(), None);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn unk_token_id(&self) -> Option<u32> {
        self.special("unk_token")
    }

    fn special(&self, name: &str) -> Option<u32> {
        self.parts.special.get(name).and_then(|token| self.token_to_id(token))
    }

    /// Returns `true` if the vocabulary keeps a token apart from text: a special one, or another
    /// added one.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert!(tokenizer.is_added_token(2) && !tokenizer.is_added_token(281));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn is_added_token(&self, id: u32) -> bool {
        self.parts.model.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    pub(crate) fn files(&self) -> &Files {
        &self.parts.files
    }

    pub(crate) fn model(&self) -> &tokenizers::Tokenizer {
        &self.parts.model
    }

    /// Returns the tokenizer of changed files, with the chat templates of this one.
    pub(crate) fn with_files(&self, files: Files) -> Result<Self, TextError> {
        let Self { templates, replaced, .. } = self.clone();
        Ok(Self { templates, replaced, changed: true, ..Self::from_files(files)? })
    }

    /// The general chat template, if there is one.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert!(tokenizer.chat_template().is_some_and(|chat| !chat.has_generation_blocks()));
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.templates.get(DEFAULT)
    }

    /// Replaces all chat templates by one, which [`save`](Self::save) writes.
    ///
    /// ```
    /// # use burn_lora_text::{ChatOptions, ChatTemplate, Message, Tokenizer};
    /// # let mut tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// tokenizer.set_chat_template(ChatTemplate::new("{{ messages[0].content }}{{ eos_token }}")?);
    /// let text = tokenizer.apply_chat_template(&[Message::user("Hi")], &ChatOptions::new())?;
    /// assert_eq!(text, "Hi<|im_end|>");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.templates = BTreeMap::from([(DEFAULT.into(), template)]);
        self.replaced = true;
    }

    /// Renders a conversation as text.
    ///
    /// ```
    /// # use burn_lora_text::{ChatOptions, Message, Tokenizer};
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let text = tokenizer.apply_chat_template(&[Message::user("Hi")], &ChatOptions::new())?;
    /// assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Template`] if there is no template, or if it is malformed or rejects the
    /// messages.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, TextError> {
        self.render(messages, options).map(|(text, _)| text)
    }

    /// Renders a conversation; returns the text, and the byte ranges of its `{% generation %}`
    /// blocks.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<(String, Vec<Range<usize>>), TextError> {
        self.template(options)?.render_marked(messages, options, &self.parts.special)
    }

    pub(crate) fn template(&self, options: &ChatOptions) -> Result<&ChatTemplate, TextError> {
        let named = |name: &str| self.templates.get(name);
        let found = match options.template.as_deref() {
            Some(name) => named(name),
            None if options.tools.is_some() => named("tool_use").or_else(|| named(DEFAULT)),
            None => named(DEFAULT),
        };
        found.ok_or_else(|| {
            let name = options.template.as_deref().unwrap_or(DEFAULT);
            let there: Vec<_> = self.templates.keys().map(String::as_str).collect();
            let there = if there.is_empty() { "none".into() } else { there.join(", ") };
            let reason = format!(
                "{} has no template `{name}` (there: {there}): give it one by `set_chat_template`",
                self.parts.files.origin.display(),
            );
            TextError::Template { reason }
        })
    }

    /// Saves the tokenizer in a form that transformers and
    /// [`from_pretrained`](Self::from_pretrained) read: the files of its folder unchanged, or a
    /// GGUF file converted to them. Each file is written atomically.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// # let folder = tempfile::tempdir().unwrap();
    /// tokenizer.save(folder.path())?;
    /// assert_eq!(Tokenizer::from_pretrained(folder.path())?.vocab_size(), tokenizer.vocab_size());
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Io`] if a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), TextError> {
        let template = self.chat_template().filter(|_| self.replaced);
        self.parts.files.write(folder.as_ref(), template.map(ChatTemplate::source))
    }
}

/// Reason of an error from a panic of the crate.
fn contradicts() -> String {
    "the tokenizer contradicts itself".into()
}
