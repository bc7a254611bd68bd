//! Data: from files to batches of tokens.
//!
//! ```
//! use burn_lora_text::Tokenizer;
//! use burn_lora_train::data::{BatchConfig, Dataset};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("chats.jsonl");
//! # std::fs::write(&path, r#"{"messages": [{"role": "user", "content": "hello"},
//! #   {"role": "assistant", "content": "hello world"}]}"#.replace('\n', " ")).unwrap();
//! let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
//! let data = Dataset::from_files([&path]).max_length(1024).load(&tokenizer)?;
//! println!("{}", data.report());
//! println!("{}", data.preview(0, &tokenizer, true)?);
//!
//! let config = BatchConfig { size: 4, packing: Some(1024), ..BatchConfig::default() };
//! for rows in data.epoch(&config, 0)? {
//!     let batch = data.batch(&rows, &config);
//!     assert_eq!(batch.ids.len(), batch.rows * batch.length);
//! }
//! # Ok::<_, burn_lora_train::TrainError>(())
//! ```
//!
//! # File formats
//!
//! | format | columns | trained on by default |
//! |---|---|---|
//! | [`Text`](Format::Text) | `text` | everything |
//! | [`PromptCompletion`](Format::PromptCompletion) | `prompt`, `completion`: text or messages | the completion |
//! | [`Alpaca`](Format::Alpaca) | `instruction`, `output`, perhaps `input` | the output |
//! | [`Messages`](Format::Messages) | `messages`: `role`, `content`; perhaps `tools` | every turn of the assistant |
//! | [`ShareGpt`](Format::ShareGpt) | `conversations`: `from`, `value` | every turn of the assistant |
//! | [`Preference`](Format::Preference) | `chosen`, `rejected`, perhaps `prompt` | both answers |
//! | [`Tokens`](Format::Tokens) | `tokens`: words; `ner_tags` or `labels` | a label per word |
//!
//! Files are `.json` (a list of objects, alone or as `data` of an object), `.jsonl`, `.csv` with a
//! header, and `.parquet`. They are read record by record, and their tokens go to a temporary file
//! that is mapped into memory.
//!
//! # Encoding
//!
//! Messages are rendered by the tokenizer's chat template, which also writes what begins a text.
//! Prompt and completion are concatenated unchanged, between the tokens that the tokenizer puts
//! around a text, followed by the end-of-text token. The end of the prompt is determined by
//! position in the text: a token belongs to the part in which its first byte is.

mod batch;
mod builder;
mod columns;
mod conversation;
mod dataset;
mod encode;
mod epoch;
mod example;
mod format;
mod load;
mod mismatched;
mod notes;
mod options;
mod pack;
mod preference;
mod preview;
mod read;
mod report;
mod sample;
mod shared_prompts;
mod store;
mod top_logits;
mod top_rows;
mod unpaired;
mod values;
mod words;

pub use batch::{Batch, IGNORE_INDEX};
pub use builder::DatasetBuilder;
pub use dataset::Dataset;
pub use epoch::{BatchConfig, Rows};
pub use format::Format;
pub use options::{OnError, TrainOn, Truncation};
pub use preview::Span;
pub use report::Report;
pub use sample::Sample;
pub use top_rows::{TopLogits, TopRows};
pub(crate) use values::LABEL;
