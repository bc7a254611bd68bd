//! New tokens of a tokenizer, in memory and in its files.

use crate::{
    error::TextError,
    files::{ADDED, CONFIG, Files, TOKENIZER},
    splice::Splice,
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

/// List of `tokenizer.json`.
const LIST: &str = "added_tokens";
/// Object of `tokenizer_config.json`.
const DECODER: &str = "added_tokens_decoder";

impl Tokenizer {
    /// Adds tokens to the vocabulary, and returns the id of each: a new one gets the next id, and one
    /// that is there keeps its own. Wherever a text has them, they become one token. As transformers'
    /// `add_tokens`; the model needs rows for them, too (`Llama::resize_token_embeddings`).
    ///
    /// [`save`](Self::save) writes the files with them: an entry each in the lists of added tokens, and
    /// all other bytes as they were.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// let mut tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// assert_eq!(tokenizer.add_tokens(["<tool>", "<|im_end|>"])?, [286, 2]);
    /// assert_eq!(tokenizer.encode("hello<tool>", false)?.last(), Some(&286));
    /// assert_eq!(tokenizer.vocab_size(), 287);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] for an empty token, or if the next id is another token's.
    pub fn add_tokens(
        &mut self,
        tokens: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<u32>, TextError> {
        self.add(tokens, false)
    }

    /// Adds special tokens, which [`decode`](Self::decode) can leave out; otherwise as
    /// [`add_tokens`](Self::add_tokens). One that is there becomes special. As transformers'
    /// `add_tokens(.., special_tokens=True)`.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// let mut tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let ids = tokenizer.add_special_tokens(["<eot>"])?;
    /// assert_eq!(tokenizer.decode(&ids, true)?, "");
    /// assert_eq!(tokenizer.decode(&ids, false)?, "<eot>");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`add_tokens`](Self::add_tokens).
    pub fn add_special_tokens(
        &mut self,
        tokens: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<u32>, TextError> {
        self.add(tokens, true)
    }

    fn add(
        &mut self,
        tokens: impl IntoIterator<Item = impl AsRef<str>>,
        special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let names: Vec<String> =
            tokens.into_iter().map(|token| token.as_ref().to_owned()).collect();
        let wrong = |reason: String| TextError::Tokenizer { reason };
        if names.iter().any(String::is_empty) {
            return Err(wrong("an empty text can be no token".into()));
        }
        let before: BTreeMap<u32, AddedToken> = self.added_tokens().into_iter().collect();
        let keeps = |name: &String| {
            before.values().any(|known| known.content == *name && (known.special || !special))
        };
        let new: Vec<_> = names.iter().filter(|name| !keeps(name)).collect();
        if !new.is_empty() {
            let mut model = self.model().clone();
            for name in &new {
                let id = model.token_to_id(name);
                let token = AddedToken::from(name.as_str(), special);
                model.add_tokens(&[token]);
                let given = model.token_to_id(name);
                let taken = given.filter(|_| id.is_none()).and_then(|id| self.id_to_token(id));
                if let Some(other) = taken {
                    return Err(wrong(format!(
                        "the vocabulary has gaps: the next number, that of `{name}`, is `{other}`'s"
                    )));
                }
            }
            let after: BTreeMap<u32, AddedToken> =
                model.get_added_tokens_decoder().into_iter().collect();
            let files = with_tokens(self.files(), &before, &after)?;
            *self = self.with_files(files)?;
            for name in new {
                if self.token_to_id(name) != model.token_to_id(name) {
                    return Err(wrong(format!(
                        "`{name}` has another number in the files than in memory: their added tokens \
                         are not numbered one after the other"
                    )));
                }
            }
        }
        let id = |name: &String| self.token_to_id(name).expect("it was added");
        Ok(names.iter().map(id).collect())
    }
}

/// Returns the files with the tokens that are new or changed. Tokens that only the config has come
/// along into `tokenizer.json`: numbers follow from the order there.
fn with_tokens(
    files: &Files,
    before: &BTreeMap<u32, AddedToken>,
    after: &BTreeMap<u32, AddedToken>,
) -> Result<Files, TextError> {
    let mut new = files.clone();
    let listed = files.json(TOKENIZER)?;
    let id_of = |entry: &Value| entry["id"].as_u64();
    let listed: Vec<u64> =
        listed[LIST].as_array().into_iter().flatten().filter_map(id_of).collect();
    let vocabulary = files.json(TOKENIZER)?["model"]["vocab"].clone();
    let in_model = |token: &AddedToken| vocabulary.get(&token.content).is_some();
    let changed = |id: &u32, token: &AddedToken| before.get(id) != Some(token);

    let text = files.text(TOKENIZER)?.unwrap_or_default();
    let mut splice = Splice::new(text);
    for (id, token) in after {
        let mut fields = vec![("id", json!(id))];
        fields.extend(settings(token));
        let number = u64::from(*id);
        match listed.contains(&number) {
            true if changed(id, token) => {
                splice.replace_item(LIST, &fields, |entry| id_of(entry) == Some(number));
            }
            false if changed(id, token) || !in_model(token) => {
                splice.insert_item(LIST, &fields, |entry| id_of(entry) > Some(number));
            }
            _ => {}
        }
    }
    new.bytes.insert(TOKENIZER, splice.into_text().into_bytes());

    let changed: Vec<_> = after.iter().filter(|(id, token)| changed(id, token)).collect();
    let has = |name: &str, field: &str| files.json(name).map(|json| json[field].is_object());
    if has(CONFIG, DECODER)? {
        let mut splice = Splice::new(files.text(CONFIG)?.unwrap_or_default());
        for (id, token) in &changed {
            splice.set_object(DECODER, &id.to_string(), &settings(token));
        }
        new.bytes.insert(CONFIG, splice.into_text().into_bytes());
    }
    if let Some(text) = files.text(ADDED)? {
        let known = files.json(ADDED)?;
        let mut splice = Splice::new(text);
        for (id, token) in changed.iter().filter(|(_, token)| known.get(&token.content).is_none()) {
            splice.insert_member(&token.content, &id.to_string());
        }
        new.bytes.insert(ADDED, splice.into_text().into_bytes());
    }
    Ok(new)
}

/// Fields of an added token, as transformers writes them.
fn settings(token: &AddedToken) -> Vec<(&'static str, Value)> {
    vec![
        ("content", json!(token.content)),
        ("single_word", json!(token.single_word)),
        ("lstrip", json!(token.lstrip)),
        ("rstrip", json!(token.rstrip)),
        ("normalized", json!(token.normalized)),
        ("special", json!(token.special)),
    ]
}
