//! Options that several commands have.

use burn_lora::prelude::{
    Device, GenerateConfig, GenerateExt, GgufType, Llama, ModelConfig, Place, Precision, TextError,
    Tokenizer, TrainError, WeightFormat,
};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use std::path::{Path, PathBuf};

/// Parser of values that the library knows by name.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    describe: fn(T) -> PossibleValue,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(move |value| describe(*value))).map(move |name| {
        let found = all.iter().find(|value| describe(**value).matches(&name, false));
        *found.expect("it is one of these names")
    })
}

/// Parser of `--format`.
pub fn format() -> impl TypedValueParser<Value = WeightFormat> {
    let describe = |format: WeightFormat| PossibleValue::new(format.name()).help(format.about());
    named(&WeightFormat::ALL, describe)
}

/// Parser of `--dtype`.
pub fn dtype() -> impl TypedValueParser<Value = Precision> {
    named(&Precision::ALL, |dtype| PossibleValue::new(dtype.name()))
}

/// Parser of `--type`.
pub fn gguf_type() -> impl TypedValueParser<Value = GgufType> {
    named(&GgufType::ALL, |kind| PossibleValue::new(kind.label()))
}

/// Parser of a number from 1 to `most`.
pub fn number(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text| match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("it is a number from 1 to {most}")),
    }
}

/// A model that answers, with an adapter.
#[derive(Args)]
pub struct ModelOptions {
    #[command(flatten)]
    pub base: BaseOptions,
    /// Folder of an adapter in PEFT's format
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
}

/// A model that answers.
#[derive(Args)]
pub struct BaseOptions {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    pub model: PathBuf,
    /// Pack the linear layers in 4 bits: --format nf4
    #[arg(long = "4bit", alias = "nf4", conflicts_with = "format")]
    four_bit: bool,
    /// Storage format of the linear layers
    #[arg(long, value_parser = format(), default_value = "none")]
    format: WeightFormat,
    /// Dtype of the computation [default: by checkpoint and device]
    #[arg(long, value_parser = dtype())]
    dtype: Option<Precision>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
}

impl BaseOptions {
    /// Returns the device, before anything is read.
    pub fn device(&self) -> Result<Device, TrainError> {
        self.device.device()
    }

    /// Loads the model.
    pub fn load(&self, device: &Device) -> Result<Llama, TrainError> {
        let settings = ModelConfig {
            path: Some(self.model.clone()),
            format: if self.four_bit { WeightFormat::Nf4 } else { self.format },
            dtype: self.dtype,
            ..ModelConfig::default()
        };
        Ok(settings.loader()?.load(device)?)
    }
}

impl ModelOptions {
    /// Loads tokenizer and model, with its adapter.
    pub fn load(&self, device: &Device) -> Result<(Tokenizer, Llama), TrainError> {
        let tokenizer = tokenizer(&self.base.model, self.adapter.as_deref())?;
        let mut model = self.base.load(device)?;
        if let Some(folder) = &self.adapter {
            use burn_lora::prelude::AdaptableExt;
            model.load_adapter("default", folder)?;
        }
        model.check_tokenizer(&tokenizer);
        Ok((tokenizer, model))
    }
}

/// Loads the tokenizer of a model with an adapter, which may have one of its own.
pub fn tokenizer(model: &Path, adapter: Option<&Path>) -> Result<Tokenizer, TextError> {
    match adapter {
        Some(adapter) => Tokenizer::from_adapter(adapter, model),
        None => Tokenizer::from_pretrained(model),
    }
}

/// How a model answers.
#[derive(Args)]
pub struct SamplingOptions {
    /// Maximum number of tokens per answer [default: 128; in a chat 512]
    #[arg(long, value_name = "TOKENS")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 takes the likeliest token [default: 0; in a chat 0.7]
    #[arg(long)]
    temperature: Option<f32>,
    /// Sample from the fewest tokens whose probabilities sum to this [default: 1; in a chat 0.9]
    #[arg(long)]
    top_p: Option<f32>,
    /// Sample from this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the tokens at least this many times as likely as the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Repetition penalty: above 1, tokens that are there already become less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// End an answer at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Look up so many tokens at a time in the text itself, and check them in one pass: faster where an answer repeats much of it
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    prompt_lookup: usize,
}

impl SamplingOptions {
    /// Settings of the turn of this number, each with a seed of its own. What is not given is as in
    /// `(tokens, temperature, top_p)`.
    pub fn config(
        &self,
        turn: u64,
        (tokens, temperature, top_p): (usize, f32, f32),
    ) -> GenerateConfig {
        let config = GenerateConfig::new(self.max_new_tokens.unwrap_or(tokens))
            .temperature(self.temperature.unwrap_or(temperature))
            .top_p(self.top_p.unwrap_or(top_p))
            .top_k(self.top_k)
            .min_p(self.min_p)
            .repetition_penalty(self.repetition_penalty)
            .seed(self.seed.wrapping_add(turn))
            .prompt_lookup(self.prompt_lookup);
        self.stop.iter().fold(config, |config, text| config.stop(text))
    }
}
