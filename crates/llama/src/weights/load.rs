//! Loading of a checkpoint onto a device.

use super::{
    build::{Builder, check, settle_head},
    bytes::is_cpu,
    folder::WeightsFolder,
    source::{FINAL_NORM, Source},
    view::View,
};
use crate::{
    classifier::SequenceClassifier,
    config::{LlamaConfig, ModelFamily},
    error::LlamaError,
    gguf::GgufModel,
    llama::{Head, Llama},
};
use burn::tensor::{DType, Device, FloatDType};
use burn_lora_adapter::AdaptableExt;
use burn_lora_io::{hub, progress::Work};
use burn_lora_quant::StorageFormat;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Loader of a checkpoint.
///
/// Tensors are uploaded one by one, and packed on the device if the model is quantized: host memory
/// holds one tensor, device memory the model and one tensor. Embeddings, output head and norms are
/// not quantized.
///
/// ```no_run
/// use burn::tensor::{Device, FloatDType};
/// use burn_lora_llama::Llama;
/// use burn_lora_quant::QuantConfig;
///
/// let model = Llama::from_pretrained("models/SmolLM2-135M")
///     .quantize(QuantConfig::nf4().double_quant(true))
///     .dtype(FloatDType::F32)
///     .load(&Device::default())?;
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is loaded before `load`"]
pub struct Loader {
    source: PathBuf,
    quantize: Option<Arc<dyn StorageFormat>>,
    dtype: Option<FloatDType>,
    fp8: bool,
    host_embeddings: bool,
    families: Vec<&'static dyn ModelFamily>,
}

impl Llama {
    /// Creates a loader for a folder in Hugging Face's layout, a `.gguf` file, or with the feature
    /// `hub` a model id ([`hub`]). Of an adapter's folder or id, the base is loaded that its settings
    /// name, and the adapter as `default`. Nothing is read before [`Loader::load`].
    pub fn from_pretrained(source: impl AsRef<Path>) -> Loader {
        Loader::new(source.as_ref())
    }
}

impl Loader {
    pub(crate) fn new(source: &Path) -> Self {
        Self {
            source: source.to_owned(),
            quantize: None,
            dtype: None,
            fp8: false,
            host_embeddings: false,
            families: vec![],
        }
    }

    /// Adds a model family, which takes precedence over those of this crate.
    pub fn family(mut self, family: &'static dyn ModelFamily) -> Self {
        self.families.insert(0, family);
        self
    }

    /// Quantizes the linear layers between embedding and output head (QLoRA). Weights that the
    /// checkpoint stores quantized (bitsandbytes, FP8, MXFP4) stay as they are.
    pub fn quantize(mut self, format: impl StorageFormat + 'static) -> Self {
        self.quantize = Some(Arc::new(format));
        self
    }

    /// Sets the dtype of activations and of weights that are not packed. Default: that of
    /// `config.json`, or else of the checkpoint, if the device computes in it, else float16 or
    /// float32; on a CPU float32.
    pub fn dtype(mut self, dtype: FloatDType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Computes the products with weights of 4 bits in FP8
    /// ([`compute_in_fp8`](burn_lora_adapter::AdaptableExt::compute_in_fp8)): a step is 1.3 times as fast on
    /// an H100. Adapters, norms, attention and the output
    /// head are computed in the [`dtype`](Self::dtype).
    pub fn fp8(mut self, fp8: bool) -> Self {
        self.fp8 = fp8;
        self
    }

    /// Keeps the embeddings in host memory, from where those of a batch are copied to the device
    /// (feature `cpu`): 1.05 GB less on the device for Llama 3.1 8B. They cannot be trained then.
    /// No effect with tied embeddings.
    pub fn host_embeddings(mut self, host: bool) -> Self {
        self.host_embeddings = host;
        self
    }

    /// Returns the dtypes that the matrices of the checkpoint are stored in, that of most bytes
    /// first. Reads headers only.
    ///
    /// GGUF's block types count as bfloat16, in which the models were trained, and float32, to
    /// which they are decoded; weights that safetensors hold quantized (bitsandbytes, FP8) do not
    /// count. With one dtype in the list the model can be loaded in it as it is; float32 holds any
    /// of them.
    ///
    /// # Errors
    /// As [`load`](Self::load), as far as headers show it.
    pub fn stored_dtypes(&self) -> Result<Vec<FloatDType>, LlamaError> {
        let root = &hub::resolve(&self.source)?;
        if is_gguf(root) {
            return Ok(stored_dtypes(&GgufModel::open(root)?));
        }
        if let Some(base) = burn_lora_io::base_of(root)? {
            return self.at(base).stored_dtypes();
        }
        Ok(stored_dtypes(&WeightsFolder::open(root)?))
    }

    /// Checks by the headers of the files whether the model can be loaded, and returns its
    /// configuration: whether the family and its settings are supported, and the tensors are those
    /// of the model, in their shapes and in dtypes that are read. No values are.
    ///
    /// ```
    /// use burn_lora_llama::Llama;
    ///
    /// let config = Llama::from_pretrained("../../testdata/gqa").check()?;
    /// assert_eq!(config.layers.len(), 3);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// As [`load`](Self::load), as far as headers show it.
    pub fn check(&self) -> Result<LlamaConfig, LlamaError> {
        self.open(|root, source, config| {
            check(source, root, config)?;
            Ok(config.clone())
        })
    }

    /// Opens the checkpoint, that of the base for an adapter, and reads headers only.
    fn open<T>(
        &self,
        run: impl FnOnce(&Path, &dyn Source, &LlamaConfig) -> Result<T, LlamaError>,
    ) -> Result<T, LlamaError> {
        let root = &hub::resolve(&self.source)?;
        if is_gguf(root) {
            let source = GgufModel::open(root)?;
            return run(root, &source, source.config());
        }
        if let Some(base) = burn_lora_io::base_of(root)? {
            return self.at(base).open(run);
        }
        let config = LlamaConfig::from_file_with(root.join("config.json"), &self.families)?;
        let source = WeightsFolder::open(root)?;
        run(root, &View::new(&source, &config, root)?, &config)
    }

    /// Loads the model.
    ///
    /// # Errors
    /// Errors of the checkpoint name the file and the tensor or field.
    ///
    /// - [`LlamaError::Hub`] if the model cannot be obtained from the hub.
    /// - [`LlamaError::Io`] if a file cannot be read.
    /// - [`LlamaError::Format`] if the checkpoint is incomplete, malformed or cut off, or values of
    ///   a tensor are not finite in the dtype of the model.
    /// - [`LlamaError::Field`] if a setting is not supported.
    /// - [`LlamaError::MissingTensors`], [`LlamaError::UnexpectedTensors`], [`LlamaError::Shape`]
    ///   or [`LlamaError::DType`] if the tensors are not those of the model.
    /// - [`LlamaError::Quant`] if the storage format rejects its settings or a weight.
    /// - [`LlamaError::Adapter`] if the source is an adapter that its base does not fit.
    pub fn load(&self, device: &Device) -> Result<Llama, LlamaError> {
        self.load_with(Head::Output, device)
    }

    /// Loads the decoder with a classification head, `score`: the checkpoint's own, or a new one
    /// with a warning.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_classifier(
        &self,
        num_labels: usize,
        device: &Device,
    ) -> Result<SequenceClassifier, LlamaError> {
        let head = Head::Classes { count: num_labels, bias: false };
        Ok(SequenceClassifier { llama: self.load_with(head, device)? })
    }

    /// Loads the decoder with a classification head for each token, `score`, which has a bias: transformers'
    /// `ForTokenClassification`. It is the checkpoint's own, or a new one with a warning.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_token_classifier(
        &self,
        num_labels: usize,
        device: &Device,
    ) -> Result<SequenceClassifier, LlamaError> {
        let head = Head::Classes { count: num_labels, bias: true };
        Ok(SequenceClassifier { llama: self.load_with(head, device)? })
    }

    /// Loads the model from a source of one's own. The path that the loader was created with is only
    /// named in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load), as far as it is about tensors, and those of the source.
    pub fn load_from(
        &self,
        source: &dyn Source,
        config: &LlamaConfig,
        device: &Device,
    ) -> Result<Llama, LlamaError> {
        let source = View::new(source, config, &self.source)?;
        let config = settle_head(config.clone(), &source, &self.source)?;
        self.build(&self.source, &source, &config, Head::Output, device)
    }

    fn load_with(&self, head: Head, device: &Device) -> Result<Llama, LlamaError> {
        // Once: of an id it asks the hub.
        let root = hub::resolve(&self.source)?;
        let mut model = self.at(root.clone()).open(|root, source, config| {
            let config = settle_head(config.clone(), source, root)?;
            self.build(root, source, &config, head, device)
        })?;
        if !is_gguf(&root) && burn_lora_io::base_of(&root)?.is_some() {
            model.load_adapter("default", root)?;
        }
        Ok(model)
    }

    /// The same loader for another checkpoint.
    fn at(&self, source: PathBuf) -> Self {
        Self { source, ..self.clone() }
    }

    fn build(
        &self,
        root: &Path,
        source: &dyn Source,
        config: &LlamaConfig,
        head: Head,
        device: &Device,
    ) -> Result<Llama, LlamaError> {
        if let Some(quantize) = &self.quantize {
            quantize.validate()?;
        }
        let dtype = self.dtype.unwrap_or_else(|| default_dtype(config, source, device));
        let total: usize = source.names().iter().map(|name| source.bytes(name)).sum();
        let work = Work::bytes("loading", total as u64);
        let builder = Builder {
            source,
            root,
            config,
            quantize: self.quantize.as_deref(),
            dtype,
            device,
            embedding_device: &self.embedding_device(config, device)?,
            head,
            work: &work,
        };
        let model = builder.build();
        drop(work);
        // Frees the memory of the dense tensors.
        device.memory_cleanup();
        let mut model = model?;
        if self.fp8 {
            model.compute_in_fp8()?;
        }
        Ok(model)
    }

    fn embedding_device(
        &self,
        config: &LlamaConfig,
        device: &Device,
    ) -> Result<Device, LlamaError> {
        if !self.host_embeddings || config.tie_word_embeddings {
            return Ok(device.clone());
        }
        #[cfg(feature = "cpu")]
        return Ok(Device::flex());
        #[cfg(not(feature = "cpu"))]
        Err(LlamaError::format(&self.source, "embeddings on the host need the feature `cpu`"))
    }
}

fn stored_dtypes(source: &dyn Source) -> Vec<FloatDType> {
    let mut found: Vec<(DType, usize)> = vec![];
    let names = source.names().into_iter();
    let matrices = names.filter(|name| source.shape(name).is_some_and(|shape| shape.len() >= 2));
    for (name, (i, dtype)) in matrices
        .flat_map(|name| source.dtypes(name).into_iter().enumerate().map(move |d| (name, d)))
    {
        let bytes = if i == 0 { source.bytes(name) } else { 0 };
        match found.iter_mut().find(|(known, _)| *known == dtype) {
            Some((_, sum)) => *sum += bytes,
            None => found.push((dtype, bytes)),
        }
    }
    found.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    found.into_iter().map(|(dtype, _)| dtype.into()).collect()
}

fn is_gguf(path: &Path) -> bool {
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    is_gguf && !path.is_dir()
}

/// Dtype of the checkpoint, if the device computes in it. As in transformers, `config.json` takes
/// precedence over the weights.
fn default_dtype(config: &LlamaConfig, source: &dyn Source, device: &Device) -> FloatDType {
    if is_cpu(device) {
        return FloatDType::F32;
    }
    let stored = source.dtype();
    let dtype = config.dtype().unwrap_or(stored);
    if dtype != stored {
        let path = source.path(FINAL_NORM).display();
        burn_lora_io::warn!(
            "{path}: the weights are {}, and config.json says {}: it is loaded as that",
            stored.name(),
            dtype.name()
        );
    }
    [dtype, DType::F16]
        .into_iter()
        .find(|&dtype| dtype == DType::F32 || device.supports_dtype(dtype))
        .map_or(FloatDType::F32, FloatDType::from)
}
