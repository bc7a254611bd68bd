#![doc = include_str!("../README.md")]

pub use burn_lora_adapter as adapter;
pub use burn_lora_io::progress;
pub use burn_lora_kernels as kernels;
pub use burn_lora_llama as llama;
pub use burn_lora_quant as quant;
#[cfg(feature = "serve")]
pub use burn_lora_serve as serve;
pub use burn_lora_text as text;
pub use burn_lora_train as train;

/// Common imports: `use burn_lora::prelude::*`.
pub mod prelude {
    pub use burn::module::Module;
    pub use burn::tensor::{Device, FloatDType, Tensor};
    pub use burn_lora_adapter::{
        ActiveAdapters, Adaptable, AdaptableExt, AdaptedEmbedding, AdaptedLayer, AdaptedLinear,
        AdaptedVector, AdapterError, BASE, Bias, Combine, FrozenLayer, Init, InputStats,
        LoraConfig, MergeReport, Method, PackedMerge, ParamGroups, Selection, Summary,
        TrainableTokensConfig, VeraConfig, adaptable,
    };
    pub use burn_lora_llama::{
        CausalLm, Generate, GenerateConfig, GenerateExt, Generated, GeneratedText, Generation,
        GgufType, LayerCache, Llama, LlamaConfig, LlamaError, LogProbs, SaveOptions, Segments,
        SequenceClassifier, Stopped, TextStream,
    };
    pub use burn_lora_quant::{
        DenseWeight, EightBitConfig, Format, Frozen, Gemm, PackedLinear, PackedWeight, QuantConfig,
        QuantError, Storage, StorageFormat, WeightFormat,
    };
    pub use burn_lora_text::{ChatOptions, ChatTemplate, Message, TextError, Tokenizer};
    pub use burn_lora_train::{
        Answers, BatchConfig, Compute, DataConfig, Dataset, EarlyStopping, Every, Goal, Interrupt,
        MemoryPlan, Metric, MetricsConfig, ModelConfig, Objective, Observer, OptimizerConfig,
        Place, Precision, Progress, Recompute, Report, RunConfig, RunData, Schedule, Sweep,
        TokensConfig, TrainConfig, TrainError, TrainTokens, Trainer, Validation, Warmup, evaluate,
    };
}

/// The book, whose programs run as doc tests.
#[cfg(doctest)]
mod book {
    macro_rules! chapters {
        ($($name:ident: $file:literal;)+) => {$(
            #[doc = include_str!(concat!("../docs/", $file))]
            mod $name {}
        )+};
    }

    #[cfg(feature = "serve")]
    chapters! { serving: "serving.md"; }
    chapters! {
        adapters_and_peft: "adapters-and-peft.md";
        command_line: "command-line.md";
        data: "data.md";
        extending: "extending.md";
        getting_started: "getting-started.md";
        heads: "heads.md";
        hyperparameters: "hyperparameters.md";
        lora_and_qlora: "lora-and-qlora.md";
        memory: "memory.md";
        preferences: "preferences.md";
        distillation: "distillation.md";
        qlora_on_your_gpu: "qlora-on-your-gpu.md";
        troubleshooting: "troubleshooting.md";
        your_own_model: "your-own-model.md";
    }
}
