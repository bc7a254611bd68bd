//! Memory estimate of a run, before it starts.

mod account;
mod budget;
mod memory;
mod shape;

pub use budget::MemoryBudget;
pub use memory::{Memory, Moment};

use crate::{OptimizerConfig, Recompute, TrainConfig, TrainError};
use account::Account;
use burn::tensor::{DType, Device, FloatDType};
use burn_lora_adapter::Method;
use burn_lora_kernels::attention_is_fused;
use burn_lora_llama::{Keep, LlamaConfig};
use burn_lora_quant::StorageFormat;
use shape::Shape;
use std::{fmt, sync::Arc};

/// Memory estimate of a run of a [`Llama`](burn_lora_llama::Llama), from its settings alone:
/// nothing is loaded, and no device is needed.
///
/// It counts the tensors that are alive when a step needs most: every token of a batch is taken as
/// a target, and every row as long as the longest. Compared with CubeCL's pool on CUDA, the
/// estimate is up to 4 % above the usage that a thread sampled every millisecond; on other GPUs
/// matrix products need some scratch memory of their own. For the CPU, set [`FloatDType::F32`].
///
/// ```
/// use burn_lora_adapter::LoraConfig;
/// use burn_lora_llama::LlamaConfig;
/// use burn_lora_quant::QuantConfig;
/// use burn_lora_train::{MemoryPlan, TrainConfig};
///
/// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
/// let plan = MemoryPlan::new(&config)
///     .quantize(QuantConfig::nf4().double_quant(true))
///     .adapter(&LoraConfig::new(16, 32).all_linear())?
///     .train(&TrainConfig::new(2e-4).batch_size(4))
///     .length(1024);
/// println!("{plan}");
/// assert!(plan.fits(24 << 30));
/// println!("at most {} rows", plan.max_batch(24 << 30));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    config: LlamaConfig,
    shape: Shape,
    /// Format of the layers that the checkpoint stores quantized.
    stored: Option<Arc<dyn StorageFormat>>,
    /// That of the others.
    quantize: Option<Arc<dyn StorageFormat>>,
    dtype: FloatDType,
    fp8: bool,
    host_embeddings: bool,
    device: Option<Device>,
    train: Option<TrainConfig>,
    rows: usize,
    length: usize,
    at_loss: u64,
}

impl MemoryPlan {
    /// Creates the plan of a bfloat16 model, stored as its checkpoint is, and one row of 2,048
    /// tokens through it without gradients.
    ///
    /// # Panics
    /// Never: a [`LlamaConfig`] has been checked.
    pub fn new(config: &LlamaConfig) -> Self {
        Self {
            shape: Shape::new(config, None).expect("nothing is asked of it"),
            stored: config.stored_format(),
            quantize: None,
            config: config.clone(),
            dtype: FloatDType::BF16,
            fp8: false,
            host_embeddings: false,
            device: None,
            train: None,
            rows: 1,
            length: 2048,
            at_loss: 0,
        }
    }

    /// Quantizes the linear layers, as [`Loader::quantize`](burn_lora_llama::Loader::quantize)
    /// does; what the checkpoint stores quantized stays as it is.
    pub fn quantize(mut self, format: impl StorageFormat + 'static) -> Self {
        self.quantize = Some(Arc::new(format));
        self
    }

    /// Sets the dtype of activations and of the weights that are not packed.
    pub fn dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Computes products with weights of 4 bits in FP8, as
    /// [`Loader::fp8`](burn_lora_llama::Loader::fp8) does.
    pub fn fp8(mut self, fp8: bool) -> Self {
        self.fp8 = fp8;
        self
    }

    /// Leaves the embeddings in host memory, as
    /// [`Loader::host_embeddings`](burn_lora_llama::Loader::host_embeddings) does.
    pub fn host_embeddings(mut self, host: bool) -> Self {
        self.host_embeddings = host;
        self
    }

    /// Sets the device. Without one, the attention scores count as passing through memory, which on
    /// CUDA most do not: see [`attention_is_fused`].
    pub fn on(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// Sets the adapter to train.
    ///
    /// # Errors
    /// [`TrainError::Adapter`] if the settings are invalid or match no layer of the model.
    pub fn adapter(mut self, method: &dyn Method) -> Result<Self, TrainError> {
        self.shape = Shape::new(&self.config, Some(method))?;
        Ok(self)
    }

    /// Sets the training settings, and the rows of a batch from them.
    pub fn train(mut self, config: &TrainConfig) -> Self {
        self.rows = config.batches.size;
        self.shape.freeze_a(matches!(config.optimizer, OptimizerConfig::LoraFa { .. }));
        self.train = Some(config.clone());
        self
    }

    /// Adds bytes that an objective has at its loss beside what the next token's takes, such as other rows.
    pub fn at_loss(mut self, bytes: u64) -> Self {
        self.at_loss = bytes;
        self
    }

    /// Sets the number of rows of a batch.
    pub fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// Sets the number of tokens of the longest row.
    pub fn length(mut self, tokens: usize) -> Self {
        self.length = tokens;
        self
    }

    /// Returns the number of trained parameters.
    pub fn trainable(&self) -> usize {
        self.shape.trained().sum()
    }

    /// Returns the memory at the peak, by part.
    pub fn peak(&self) -> Memory {
        let dtype = DType::from(self.dtype);
        let size = dtype.size();
        let embedding = (self.shape.embedding.values() * size) as u64;
        // A tied head needs them on the device.
        let on_host = self.host_embeddings && !self.config.tie_word_embeddings;
        let (here, host) = if on_host { (0, embedding) } else { (embedding, 0) };
        let begin = Memory {
            base: self.shape.base_bytes(self.stored.as_deref(), self.quantize.as_deref(), size)
                + here,
            adapter: self.shape.adapter_bytes(),
            optimizer: match &self.train {
                Some(train) => self.shape.optimizer_bytes(&train.optimizer),
                None => 0,
            },
            host,
            ..Memory::default()
        };
        let account = Account {
            config: &self.config,
            shape: &self.shape,
            packed: self.stored.is_some() || self.quantize.is_some(),
            fused: self.device.as_ref().is_some_and(|device| {
                let mut layers = self.config.layers.iter().map(|layer| layer.attention.head_dim);
                layers.all(|head_dim| attention_is_fused(device, dtype, head_dim))
            }),
            size,
            fp8: self.fp8,
            rows: self.rows,
            length: self.length,
            at_loss: self.at_loss,
        };
        let moments = match &self.train {
            Some(train) => account.training(train, &begin),
            None => account.evaluation(&begin),
        };
        moments.into_iter().max_by_key(Memory::total).expect("there are some")
    }

    /// Returns the bytes of the peak, which CubeCL's pool reports as in use.
    pub fn total(&self) -> u64 {
        self.peak().total()
    }

    /// Returns the bytes that a GPU has to have: see [`Memory::needed`].
    pub fn needed(&self) -> u64 {
        self.peak().needed()
    }

    /// Returns `true` if the run fits a GPU with this many bytes.
    pub fn fits(&self, device: u64) -> bool {
        self.needed() <= device
    }

    /// Returns the settings with which a GPU with this many bytes computes least again: as many layers
    /// as fit [keep all of their attention](TrainConfig::keep_attention_of), and if all of them do, as
    /// many as fit are not run again at all ([`Recompute::AllBut`]). With [`offload`](TrainConfig::offload)
    /// all of them keep their attention, in host memory. `None` if the step does not fit even if all
    /// layers run again.
    ///
    /// ```
    /// use burn_lora_adapter::LoraConfig;
    /// use burn_lora_llama::LlamaConfig;
    /// use burn_lora_train::{MemoryPlan, Recompute, TrainConfig};
    ///
    /// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
    /// let plan = MemoryPlan::new(&config)
    ///     .adapter(&LoraConfig::new(8, 16).all_linear())?
    ///     .train(&TrainConfig::new(1e-4));
    /// let settings = plan.train_within(24 << 30).expect("it fits");
    /// assert_eq!(settings.recompute, Recompute::None);
    /// assert_eq!(plan.train_within(1 << 20), None);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn train_within(&self, device: u64) -> Option<TrainConfig> {
        let depth = self.config.layers.len();
        let train = self.train.clone().unwrap_or_default().keep_attention_of(0);
        let again = |train: &TrainConfig| train.clone().recompute(Recompute::EveryLayer);
        let keeping = train.clone().keep(train.keep.max(Keep::Attention));
        let mut settings = [train.offload.then_some(keeping), Some(train)].into_iter().flatten();
        let train = settings.find(|train| self.clone().train(&again(train)).fits(device))?;
        let with = |recompute, attentions| {
            train.clone().recompute(recompute).keep_attention_of(attentions)
        };
        let fits =
            |recompute, attentions| self.clone().train(&with(recompute, attentions)).fits(device);
        let attentions = match (train.offload, train.keep) {
            (true, _) | (_, Keep::Attention | Keep::All) => 0,
            (false, Keep::Inputs | Keep::Outputs) => {
                let attentions = largest(depth, |count| fits(Recompute::EveryLayer, count));
                if attentions < depth {
                    return Some(with(Recompute::EveryLayer, attentions));
                }
                depth
            }
        };
        Some(match largest(depth, |kept| fits(Recompute::AllBut(kept), attentions)) {
            0 | 1 => with(Recompute::EveryLayer, attentions),
            kept if kept == depth => with(Recompute::None, 0),
            kept => with(Recompute::AllBut(kept), attentions),
        })
    }

    /// Returns the maximum number of rows of this length that fit a GPU with this many bytes; 0 if
    /// not even one does.
    pub fn max_batch(&self, device: u64) -> usize {
        largest(1 << 20, |rows| self.clone().rows(rows).fits(device))
    }

    /// Returns the maximum number of tokens per row, with this number of rows, that fit a GPU with
    /// this many bytes: at most the model's `max_position_embeddings`, 0 if not even one fits.
    pub fn max_length(&self, device: u64) -> usize {
        let most = self.config.max_position_embeddings;
        largest(most, |length| self.clone().length(length).fits(device))
    }
}

/// Returns the bytes of a device's memory, where CubeCL knows them: on CUDA and Metal.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_train::plan::device_memory;
///
/// if let Some(bytes) = device_memory(&Device::default()) {
///     println!("{} GiB", bytes >> 30);
/// }
/// ```
pub fn device_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cubecl")]
    if let Some(client) = burn_lora_kernels::cube::client(device) {
        return client.properties().memory.max_memory();
    }
    let _ = device;
    None
}

/// Returns the largest number up to `most` that fits, given that all below it fit.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fit, mut beyond) = (0, 1);
    while beyond <= most && fits(beyond) {
        (fit, beyond) = (beyond, beyond * 2);
    }
    beyond = beyond.min(most + 1);
    while beyond - fit > 1 {
        let middle = fit + (beyond - fit) / 2;
        if fits(middle) { fit = middle } else { beyond = middle }
    }
    fit
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, length, .. } = self;
        let plural = if *rows == 1 { "" } else { "s" };
        writeln!(
            f,
            "{rows} row{plural} of {length} tokens; trained parameters: {}",
            self.trainable()
        )?;
        self.peak().fmt(f)
    }
}
