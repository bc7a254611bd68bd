//! Trains a small Llama from scratch, with its tokenizer: the one that the quickstart fine-tunes.
//!
//! ```sh
//! pip download --no-deps plotnine==0.15.9 && python3 -m zipfile -e plotnine-*.whl plotnine
//! cargo run --release --features cuda --example pretrain -- --tables plotnine/plotnine/data
//! ```

#[macro_use]
#[path = "support/program.rs"]
mod program;
#[path = "support/corpus.rs"]
mod corpus;
#[path = "support/place.rs"]
mod place;

use burn_lora::{prelude::*, train::data::Sample};
use clap::Parser;
use corpus::Corpus;
use place::Place;
use rayon::prelude::*;
use serde_json::json;
use std::{
    error::Error,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokenizers::{
    AddedToken,
    decoders::byte_level::ByteLevel,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{PreTokenizerWrapper, digits::Digits, sequence::Sequence},
};

/// End-of-text token.
const END: &str = "<|endoftext|>";

/// Tokens per row, into which several texts are packed that do not see each other.
const ROW: usize = 128;

/// Trains a small Llama from scratch on text that it makes itself, and saves it as a folder in
/// Hugging Face's layout.
#[derive(Parser)]
struct Arguments {
    /// Output folder of model and tokenizer
    #[arg(long, default_value = "quickstart-model")]
    out: PathBuf,
    /// Folder of plotnine's CSV files, to train on those too
    #[arg(long)]
    tables: Option<PathBuf>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
    #[arg(long, default_value_t = 8000)]
    steps: usize,
    /// Rows of 128 tokens per step
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Number of texts in the corpus
    #[arg(long, default_value_t = 1_000_000)]
    texts: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-3)]
    rate: f64,
    /// Size of the vocabulary
    #[arg(long, default_value_t = 1024)]
    vocabulary: usize,
    /// Width of the model: a multiple of 64
    #[arg(long, default_value_t = 192)]
    hidden: usize,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    program::run(pretrain)
}

fn pretrain() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let Arguments { out, steps, seed, .. } = &arguments;
    let device = arguments.device.device()?;

    let corpus = Corpus::new(*seed, arguments.tables.as_deref())?;
    let texts: Vec<String> = corpus.take(arguments.texts).collect();
    println!("{} texts, such as\n\n{}\n", texts.len(), texts[..texts.len().min(5)].join("\n\n"));
    train_tokenizer(&texts, arguments.vocabulary, out)?;
    let tokenizer = Tokenizer::from_pretrained(out)?;
    let samples = texts.par_iter().map(|text| sample(text, &tokenizer));
    let samples = samples.collect::<Result<Vec<_>, _>>()?;
    let (train, valid) = Dataset::from_samples(samples)?.split(0.01, *seed);

    let config = LlamaConfig::from_json(&model_config(&arguments).to_string())?;
    // The trainer trains what requires a gradient.
    let mut model = Llama::random(&config, *seed, &device).set_require_grad(true);
    println!("{} parameters on {device:?}", model.num_params());
    let config = TrainConfig::new(arguments.rate)
        .epochs(1e6)
        .max_steps(*steps)
        .batches(BatchConfig {
            size: arguments.batch,
            packing: Some(ROW),
            ..BatchConfig::default()
        })
        .optimizer(OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 })
        .weight_decay(0.1)
        .schedule(Schedule::Cosine)
        .warmup(Warmup::Ratio(0.03))
        .recompute(Recompute::None)
        .evaluate(Every::Steps(steps.div_ceil(8)))
        .seed(*seed);
    let progress = Progress::new().lines(10);
    Trainer::new(config).observe(progress).fit(&mut model, &train, Some(&valid))?;
    model.save_pretrained(out, &SaveOptions::new().dtype(FloatDType::F16))?;

    let unseen = [
        "A 1.20 carat topaz, good cut, color G, clarity VS1.\nPrice is $",
        "A 1.20 carat topaz, ideal cut, color D, clarity IF.\nPrice is $",
        "12; 1,530; 208\nIn order: ",
        "$1,200 and $450 are $",
    ];
    let config = GenerateConfig::new(32);
    let answers =
        model.generate_text(&tokenizer, &unseen, &config, |_, _| ControlFlow::Continue(()))?;
    for (prompt, answer) in unseen.iter().zip(answers) {
        println!("\n{prompt}«{}»", answer.text);
    }
    println!("\nThe model is in {}.", out.display());
    Ok(())
}

/// Sample of a text: every token is trained on, its end too.
fn sample(text: &str, tokenizer: &Tokenizer) -> Result<Sample, LlamaError> {
    let mut ids = tokenizer.encode(text, false)?;
    ids.extend(tokenizer.eos_token_id());
    ids.truncate(ROW);
    Ok(Sample { loss_mask: vec![true; ids.len()], ids })
}

fn model_config(arguments: &Arguments) -> serde_json::Value {
    let hidden = arguments.hidden;
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arguments.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": (hidden * 8 / 3).next_multiple_of(64),
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": hidden / 32,
        "num_key_value_heads": hidden / 64,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "bos_token_id": null,
        "eos_token_id": 0,
        "pad_token_id": 0,
    })
}

/// Trains a byte-level BPE in which every digit is a token: numbers are read digit by digit.
fn train_tokenizer(
    texts: &[String],
    vocabulary: usize,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let bytes = ByteLevel::new(false, true, true);
    let parts: [PreTokenizerWrapper; 2] = [Digits::new(true).into(), bytes.into()];
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts.into()))).with_decoder(Some(bytes));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let some = texts.iter().take(100_000);
    tokenizer.train(&mut TrainerWrapper::from(trainer), some).map_err(|e| e.to_string())?;

    fs::create_dir_all(folder)?;
    tokenizer.save(folder.join("tokenizer.json"), false).map_err(|e| e.to_string())?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": false,
    });
    fs::write(folder.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    Ok(())
}
