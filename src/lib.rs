#![doc = include_str!("../README.md")]

pub use burn_lora_adapter as adapter;
pub use burn_lora_llama as llama;
pub use burn_lora_quant as quant;
pub use burn_lora_train as train;

/// What a program that uses this library wants at hand.
pub mod prelude {
    pub use burn::module::Module;
    pub use burn::tensor::{Device, FloatDType, Tensor};
    pub use burn_lora_adapter::{
        Adaptable, AdaptedEmbedding, AdaptedLayer, AdaptedLinear, AdaptedVector, AdapterError,
        BASE, Bias, Combine, Init, InputStats, LoraConfig, MergeReport, PackedMerge, ParamGroups,
        Selection, Summary, adaptable,
    };
    pub use burn_lora_llama::{
        ChatOptions, ChatTemplate, GenerateConfig, Generated, GeneratedText, KvCache, Llama,
        LlamaConfig, LlamaError, Message, SaveOptions, Segments, Stopped, Tokenizer,
    };
    pub use burn_lora_quant::{Format, Gemm, PackedLinear, PackedWeight, QuantConfig, QuantError};
    pub use burn_lora_train::{
        BatchConfig, CausalLm, Dataset, EarlyStopping, Every, Interrupt, Observer, Optimizer,
        Progress, Recompute, Report, Schedule, TrainConfig, TrainError, Trainer, Warmup, evaluate,
    };
}
