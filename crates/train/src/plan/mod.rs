//! What memory a run will take, before it.

mod account;
mod memory;
mod shape;

pub use memory::{Memory, Moment};

use crate::{TrainConfig, TrainError};
use account::Account;
use burn::tensor::{DType, Device, FloatDType};
use burn_lora_adapter::LoraConfig;
use burn_lora_kernels::attention_is_fused;
use burn_lora_llama::LlamaConfig;
use burn_lora_quant::StorageFormat;
use shape::Shape;
use std::{fmt, sync::Arc};

/// What memory a run of a [`Llama`](burn_lora_llama::Llama) will take, from its settings alone: nothing
/// is loaded, and no device is needed.
///
/// It is an account of the tensors that are alive when a step needs most: every token of a batch is
/// taken for a target, and every row for as long as the longest. It was compared with CubeCL's pool on
/// CUDA, where it says up to 4 % more than what a thread saw that looked every millisecond; on other GPUs
/// products take some scratch of their own. On the CPU take [`FloatDType::F32`].
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
    quantize: Option<Arc<dyn StorageFormat>>,
    dtype: FloatDType,
    host_embeddings: bool,
    device: Option<Device>,
    train: Option<TrainConfig>,
    rows: usize,
    length: usize,
}

impl MemoryPlan {
    /// A model in bfloat16 as its checkpoint is, and one row of 2,048 tokens through it without
    /// gradients.
    ///
    /// # Panics
    /// Never: a [`LlamaConfig`] has been checked.
    pub fn new(config: &LlamaConfig) -> Self {
        Self {
            shape: Shape::new(config, None).expect("nothing is asked of it"),
            quantize: config.stored_format(),
            config: config.clone(),
            dtype: FloatDType::BF16,
            host_embeddings: false,
            device: None,
            train: None,
            rows: 1,
            length: 2048,
        }
    }

    /// Quantizes the linear layers, as [`Loader::quantize`](burn_lora_llama::Loader::quantize) does; a
    /// checkpoint that is quantized stays as it is.
    pub fn quantize(mut self, format: impl StorageFormat + 'static) -> Self {
        if !self.config.quantized {
            self.quantize = Some(Arc::new(format));
        }
        self
    }

    /// The dtype of activations and of the weights that are not packed.
    pub fn dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Leaves the embeddings in host memory, as
    /// [`Loader::host_embeddings`](burn_lora_llama::Loader::host_embeddings) does.
    pub fn host_embeddings(mut self, host: bool) -> Self {
        self.host_embeddings = host;
        self
    }

    /// On this device. Without one, the scores of attention count as passing through memory, which on
    /// CUDA most do not: see [`attention_is_fused`].
    pub fn on(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// The adapter that is trained.
    ///
    /// # Errors
    /// Settings that cannot be used, or that match no layer of the model.
    pub fn adapter(mut self, lora: &LoraConfig) -> Result<Self, TrainError> {
        self.shape = Shape::new(&self.config, Some(lora))?;
        Ok(self)
    }

    /// Trains, with the rows of a batch that the settings say.
    pub fn train(mut self, config: &TrainConfig) -> Self {
        self.rows = config.batches.size;
        self.train = Some(config.clone());
        self
    }

    /// Rows of a batch.
    pub fn rows(mut self, rows: usize) -> Self {
        self.rows = rows;
        self
    }

    /// Tokens of the longest row.
    pub fn length(mut self, tokens: usize) -> Self {
        self.length = tokens;
        self
    }

    /// Parameters that are trained.
    pub fn trainable(&self) -> usize {
        self.shape.trained().sum()
    }

    /// The moment that needs most, by its parts.
    pub fn peak(&self) -> Memory {
        let dtype = DType::from(self.dtype);
        let size = dtype.size();
        let embedding = (self.shape.embedding.values() * size) as u64;
        // A tied head needs them on the device.
        let on_host = self.host_embeddings && !self.config.tie_word_embeddings;
        let (here, host) = if on_host { (0, embedding) } else { (embedding, 0) };
        let begin = Memory {
            base: self.shape.base_bytes(self.quantize.as_deref(), size) + here,
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
            packed: self.quantize.is_some(),
            fused: self
                .device
                .as_ref()
                .is_some_and(|device| attention_is_fused(device, dtype, self.config.head_dim)),
            size,
            rows: self.rows,
            length: self.length,
        };
        let moments = match &self.train {
            Some(train) => account.training(train, &begin),
            None => account.evaluation(&begin),
        };
        moments.into_iter().max_by_key(Memory::total).expect("there are some")
    }

    /// The bytes of the peak: what CubeCL's pool calls in use.
    pub fn total(&self) -> u64 {
        self.peak().total()
    }

    /// The bytes that a GPU has to have: see [`Memory::needed`].
    pub fn needed(&self) -> u64 {
        self.peak().needed()
    }

    /// Whether the run fits a GPU with so many bytes.
    pub fn fits(&self, device: u64) -> bool {
        self.needed() <= device
    }

    /// The most rows of this length that fit a GPU with so many bytes; 0 if not even one does.
    pub fn max_batch(&self, device: u64) -> usize {
        largest(1 << 20, |rows| self.clone().rows(rows).fits(device))
    }

    /// The most tokens a row, with this number of rows, that fit a GPU with so many bytes: no more
    /// than the model was made for, 0 if not even one does.
    pub fn max_length(&self, device: u64) -> usize {
        let most = self.config.max_position_embeddings;
        largest(most, |length| self.clone().length(length).fits(device))
    }
}

/// The bytes of a device's memory, where CubeCL knows them: on CUDA and Metal.
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

/// The largest number up to `most` that fits, where all below it fit.
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
