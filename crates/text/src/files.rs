//! Files of a tokenizer, in the layout of transformers.

use crate::error::TextError;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

pub const TOKENIZER: &str = "tokenizer.json";
/// A model of SentencePiece, from which `tokenizer.json` is made where there is none.
pub const SENTENCE_PIECE: &str = "tokenizer.model";
pub const CONFIG: &str = "tokenizer_config.json";
pub const SPECIAL: &str = "special_tokens_map.json";
/// Added tokens by number, of old versions of transformers.
pub const ADDED: &str = "added_tokens.json";
pub const TEMPLATE: &str = "chat_template.jinja";
/// Folder of further templates, each named by its file.
pub const TEMPLATES: &str = "additional_chat_templates";
pub const TEMPLATE_JSON: &str = "chat_template.json";
pub const GENERATION: &str = "generation_config.json";
/// Configuration of the model, from which end tokens are read.
pub const MODEL: &str = "config.json";

const NAMES: [&str; 8] =
    [TOKENIZER, CONFIG, SPECIAL, ADDED, TEMPLATE, TEMPLATE_JSON, GENERATION, MODEL];

/// Files by name, read into memory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The folder, or the file from which they were created.
    pub origin: PathBuf,
    pub bytes: BTreeMap<&'static str, Vec<u8>>,
    /// Templates of the folder of further templates, by name.
    pub templates: BTreeMap<String, String>,
}

impl Files {
    /// Reads the existing files of a folder; `tokenizer.model` where it has no `tokenizer.json`.
    pub fn read(folder: &Path) -> Result<Self, TextError> {
        let mut bytes = BTreeMap::new();
        for name in NAMES {
            if let Some(read) = Self::read_one(folder, name)? {
                bytes.insert(name, read);
            }
        }
        if !bytes.contains_key(TOKENIZER) {
            let path = folder.join(SENTENCE_PIECE);
            let read = burn_lora_io::read(&path);
            let read = read.map_err(|error| match error.kind() {
                ErrorKind::NotFound if folder.exists() => TextError::format(
                    folder,
                    "there is neither tokenizer.json nor tokenizer.model (of SentencePiece): write \
                     the former by transformers' \
                     `AutoTokenizer.from_pretrained(..).save_pretrained(..)`",
                ),
                ErrorKind::NotFound => TextError::io(folder)(error),
                _ => TextError::io(&path)(error),
            })?;
            bytes.insert(SENTENCE_PIECE, read);
        }
        let templates = more_templates(&folder.join(TEMPLATES))?;
        Ok(Self { origin: folder.to_owned(), bytes, templates })
    }

    /// Reads a file of a folder, if it is there.
    pub fn read_one(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, TextError> {
        let path = folder.join(name);
        match burn_lora_io::read(&path) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TextError::io(&path)(error)),
        }
    }

    /// Path of a file in error messages.
    pub fn path(&self, name: &str) -> PathBuf {
        if self.origin.is_dir() { self.origin.join(name) } else { self.origin.clone() }
    }

    /// Returns a file as text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, TextError> {
        let text = self.bytes.get(name).map(|bytes| std::str::from_utf8(bytes));
        text.transpose().map_err(|error| TextError::format(&self.path(name), error))
    }

    /// Returns a file as JSON; `null` if it does not exist.
    pub fn json(&self, name: &str) -> Result<Value, TextError> {
        let Some(bytes) = self.bytes.get(name) else { return Ok(Value::Null) };
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| TextError::format(&self.path(name), error))?;
        if !value.is_object() {
            return Err(TextError::format(&self.path(name), "it is no JSON object"));
        }
        Ok(value)
    }

    /// Creates the error of an invalid field.
    pub fn wrong(&self, name: &str, field: &str, found: &Value, reason: &str) -> TextError {
        TextError::Field {
            path: self.path(name),
            field: field.into(),
            found: found.to_string(),
            reason: reason.into(),
        }
    }

    /// Returns the chat templates by name: transformers calls the general one `default`. As there,
    /// template files replace all templates of the other files.
    pub fn templates(&self) -> Result<BTreeMap<String, String>, TextError> {
        let single = |text: &str| BTreeMap::from([("default".to_owned(), text.to_owned())]);
        let mut found = self.text(TEMPLATE)?.map(single).unwrap_or_default();
        found.extend(self.templates.clone());
        if !found.is_empty() {
            return Ok(found);
        }
        for name in [CONFIG, TEMPLATE_JSON] {
            let json = self.json(name)?;
            let wrong = |found| {
                let reason = "expected text, or a list of templates with `name` and `template`";
                Err(self.wrong(name, "chat_template", found, reason))
            };
            let named = match &json["chat_template"] {
                Value::Null => continue,
                Value::String(text) => return Ok(single(text)),
                Value::Array(named) => named,
                other => return wrong(other),
            };
            let mut templates = BTreeMap::new();
            for item in named {
                let (Some(name), Some(text)) = (item["name"].as_str(), item["template"].as_str())
                else {
                    return wrong(item);
                };
                templates.insert(name.to_owned(), text.to_owned());
            }
            return Ok(templates);
        }
        Ok(BTreeMap::new())
    }

    /// Writes the files into a folder, each atomically, `tokenizer.json` last. If `template` is
    /// given, it replaces their chat templates.
    pub fn write(&self, folder: &Path, template: Option<&str>) -> Result<(), TextError> {
        fs::create_dir_all(folder).map_err(TextError::io(folder))?;
        let more = folder.join(TEMPLATES);
        let known = if template.is_none() { self.templates.clone() } else { BTreeMap::new() };
        for name in more_templates(&more)?.keys().filter(|name| !known.contains_key(*name)) {
            let path = more.join(format!("{name}.jinja"));
            fs::remove_file(&path).map_err(TextError::io(&path))?;
        }
        if !known.is_empty() {
            fs::create_dir_all(&more).map_err(TextError::io(&more))?;
        }
        for (name, text) in &known {
            let path = more.join(format!("{name}.jinja"));
            burn_lora_io::replace(&path, text.as_bytes()).map_err(TextError::io(&path))?;
        }
        let template = template.map(str::as_bytes);
        for name in [CONFIG, SPECIAL, ADDED, TEMPLATE, TEMPLATE_JSON, GENERATION, TOKENIZER] {
            let own = self.bytes.get(name).map(Vec::as_slice);
            let bytes = if name == TEMPLATE { template.or(own) } else { own };
            let path = folder.join(name);
            match bytes {
                Some(bytes) => burn_lora_io::replace(&path, bytes).map_err(TextError::io(&path))?,
                // This file belongs to the model as well.
                None if name == GENERATION => (),
                // A file of another tokenizer would be read together with these.
                None => match fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(TextError::io(&path)(error));
                    }
                    _ => (),
                },
            }
        }
        Ok(())
    }
}

/// Reads the templates of a folder, by the names of their files; empty if the folder does not
/// exist.
fn more_templates(folder: &Path) -> Result<BTreeMap<String, String>, TextError> {
    let mut templates = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(templates),
        Err(error) => return Err(TextError::io(folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(TextError::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja"));
        if let Some(name) = name {
            let text = burn_lora_io::read_to_string(&path).map_err(TextError::io(&path))?;
            templates.insert(name.to_owned(), text);
        }
    }
    Ok(templates)
}
