//! Operations on the adapters of a model.

use crate::{
    active::ActiveAdapters,
    attach, cast,
    combine::{self, Combine},
    config::LoraConfig,
    error::AdapterError,
    frozen::LayerKind,
    groups::ParamGroups,
    init::eva::InputStats,
    layer::LayerAdapter,
    layers::Adaptable,
    lora_fa,
    merge::{self, MergeReport, PackedMerge},
    method::Method,
    methods::settings::Settings,
    peft, resize,
    selection::{BASE, Selection},
    summary::Summary,
    targets::MatchReport,
};
use burn::{
    module::{Module, ParamId},
    tensor::{FloatDType, TensorData},
};
use burn_lora_io::progress::Work;
use burn_lora_quant::{QuantError, StorageFormat};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

/// Operations on the adapters of a model, for every [`Adaptable`].
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// model.add_adapter("default", &LoraConfig::new(2, 4).targets(["linear"]))?;
/// model.merge_and_unload(PackedMerge::Requantize)?;
/// # Ok::<_, AdapterError>(())
/// ```
pub trait AdaptableExt: Adaptable {
    /// Attaches a new adapter. The first adapter is selected and trained; later ones stay frozen until
    /// [`select`](Self::select). If the model is not in training mode, call `.train()` afterwards.
    /// Parameters outside of the adapted layers stay as they are, trained ones too:
    /// [`with_adapter`](Self::with_adapter) freezes them.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// let report = model.add_adapter("default", &lora)?;
    /// assert_eq!(report.adapted, ["linear"]);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::Config`] if a setting cannot be used, [`AdapterError::NoMatch`] if one matches
    /// nothing, [`AdapterError::Layer`] if a layer does not support the rank or the initialisation;
    /// [`AdapterError::AdapterExists`] if the name is taken, [`AdapterError::AdapterName`] if it is not
    /// allowed; [`AdapterError::State`] if adapters are merged.
    fn add_adapter(
        &mut self,
        name: &str,
        method: &(impl Method + Clone),
    ) -> Result<MatchReport, AdapterError> {
        check_unmerged(self, "add_adapter")?;
        let head = self.output_head().to_owned();
        attach::add(self.layers_mut(), &head, name, Arc::new(method.clone()))
    }

    /// Attaches a new adapter, initialised from the principal directions of each layer's inputs
    /// ([`Init::Eva`](crate::Init::Eva)).
    ///
    /// ```
    /// # use burn::tensor::{Device, Tensor};
    /// # use burn_lora_adapter::{*, doc};
    /// # let device = Device::default();
    /// # let mut model = doc::model();
    /// use std::collections::BTreeMap;
    ///
    /// let mut stats = InputStats::new(4);
    /// let inputs = Tensor::random([32, 16], burn::tensor::Distribution::Default, &device);
    /// stats.update(inputs)?;
    /// let eva = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Eva { rho: 2.0 });
    /// model.add_adapter_with_inputs("default", &eva, &BTreeMap::from([("linear".into(), stats)]))?;
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// As [`add_adapter`](Self::add_adapter); [`AdapterError::Layer`] if a layer has no statistics.
    fn add_adapter_with_inputs(
        &mut self,
        name: &str,
        config: &LoraConfig,
        inputs: &BTreeMap<String, InputStats>,
    ) -> Result<MatchReport, AdapterError> {
        check_unmerged(self, "add_adapter")?;
        let head = self.output_head().to_owned();
        attach::add_with_inputs(self.layers_mut(), &head, name, config, inputs)
    }

    /// Adds an adapter `default` to the model and freezes every other parameter.
    ///
    /// ```
    /// # use burn::module::Module;
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// let model = model.with_adapter(&lora)?.train();
    /// assert_eq!(model.adapter_names(), ["default"]);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// As [`add_adapter`](Self::add_adapter).
    fn with_adapter(self, method: &(impl Method + Clone)) -> Result<Self, AdapterError>
    where
        Self: Module + Sized,
    {
        let mut model = self.no_grad();
        model.add_adapter("default", method)?;
        Ok(model)
    }

    /// Names of all adapters, sorted.
    fn adapter_names(&self) -> Vec<String> {
        self.adapter_configs().into_keys().collect()
    }

    /// Methods of all adapters, with their settings, by name.
    fn adapter_configs(&self) -> BTreeMap<String, Arc<dyn Method>> {
        let layers = self.layers();
        let configs = layers.iter().flat_map(|(_, layer)| layer.adapters().methods());
        configs.map(|(name, config)| (name.to_owned(), config.clone())).collect()
    }

    /// Creates the adapters to pass with a batch: checked once, used by each layer, without a change to
    /// the model. See [`ActiveAdapters`] for an example.
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter, [`AdapterError::AdapterName`] if
    /// [`BASE`] is selected other than by rows, [`AdapterError::State`] if adapters are merged.
    fn activate(&self, selection: Selection) -> Result<ActiveAdapters, AdapterError> {
        check_selection(self, &selection)?;
        Ok(ActiveAdapters::new(selection))
    }

    /// Casts the LoRA updates of linear layers to the dtype of their inputs, which each product would do else: for a copy of a
    /// model that is not trained any more, such as one that generates.
    fn cast_updates(&mut self, dtype: FloatDType) {
        cast::cast_lora(self.layers_mut(), dtype);
    }

    /// Stores a dense output head on a CPU in 8 bits if these hold its values ([`EightBitWeight::exact`]): for a copy of a model
    /// that generates, which reads all of its head for each token.
    ///
    /// [`EightBitWeight::exact`]: burn_lora_quant::EightBitWeight
    fn compact_head(&mut self) {
        #[cfg(feature = "cpu")]
        cast::compact_head(self);
    }

    /// Returns the adapters that are selected.
    fn active(&self) -> ActiveAdapters {
        let layers = self.layers();
        layers.first().map(|(_, layer)| layer.adapters().selected.clone()).unwrap_or_default()
    }

    /// Selects adapters permanently: from now on they are active, and only they are trained.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("style", &lora)?;
    /// model.add_adapter("facts", &lora)?;
    /// model.select(Selection::adapters(["facts"]))?;
    /// assert_eq!(model.summary().trainable, 2 * (16 + 16)); // facts alone
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// As [`activate`](Self::activate).
    fn select(&mut self, selection: Selection) -> Result<(), AdapterError> {
        let active = self.activate(selection)?;
        let mut layers = self.layers_mut();
        for (_, layer) in &mut layers {
            layer.adapters_mut().selected = active.clone();
        }
        attach::train_selected(layers);
        Ok(())
    }

    /// Runs a closure with other adapters, or none, and restores the previous selection afterwards
    /// (also after a panic).
    ///
    /// ```
    /// # use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor}};
    /// # use burn_lora_adapter::{AdaptableExt, AdaptedLinear, Init, LoraConfig, Selection, adaptable};
    /// # #[derive(Module, Debug)]
    /// # struct Model { linear: AdaptedLinear }
    /// # adaptable!(Model { linear });
    /// # let device = Device::default();
    /// # let mut model = Model { linear: LinearConfig::new(8, 8).init(&device).into() };
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    /// model.add_adapter("default", &lora)?;
    /// let x = Tensor::<2>::ones([1, 8], &device);
    /// let base = model.with_selection(Selection::base(), |model| model.linear.forward(x.clone()))?;
    /// let adapted = model.linear.forward(x);
    /// assert!((base - adapted).abs().max().into_scalar::<f32>() > 0.0);
    /// # Ok::<_, burn_lora_adapter::AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// As [`select`](Self::select).
    fn with_selection<R>(
        &mut self,
        selection: Selection,
        run: impl FnOnce(&Self) -> R,
    ) -> Result<R, AdapterError>
    where
        Self: Sized,
    {
        struct Restore<'a, M: Adaptable> {
            model: &'a mut M,
            before: Vec<ActiveAdapters>,
        }
        impl<M: Adaptable> Drop for Restore<'_, M> {
            fn drop(&mut self) {
                let layers = self.model.layers_mut().into_iter().zip(self.before.drain(..));
                layers.for_each(|((_, layer), before)| layer.adapters_mut().selected = before);
            }
        }
        let active = self.activate(selection)?;
        let layers = self.layers_mut().into_iter();
        let before = layers
            .map(|(_, layer)| std::mem::replace(&mut layer.adapters_mut().selected, active.clone()))
            .collect();
        let restore = Restore { model: self, before };
        Ok(run(restore.model))
    }

    /// Deletes an adapter. What a residual initialisation subtracted from the base is not added back.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("default", &lora)?;
    /// model.delete_adapter("default")?;
    /// assert!(model.adapter_names().is_empty());
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter, [`AdapterError::State`] if adapters
    /// are merged.
    fn delete_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        check_known(self, name)?;
        check_unmerged(self, "delete_adapter")?;
        for (_, layer) in self.layers_mut() {
            let adapters = layer.adapters_mut();
            adapters.remove(name);
            let selection = adapters.selection();
            if selection.names().contains(&name) {
                adapters.selected = ActiveAdapters::new(selection.without(name));
            }
        }
        Ok(())
    }

    /// Combines adapters, each with a weight, into a new one. It is not selected.
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter, [`AdapterError::AdapterExists`] if
    /// the new name is taken, [`AdapterError::State`] or [`AdapterError::Layer`] if the adapters cannot
    /// be combined that way.
    fn combine_adapters(
        &mut self,
        new: &str,
        adapters: &[(&str, f64)],
        how: &Combine,
    ) -> Result<(), AdapterError> {
        for (name, _) in adapters {
            check_known(self, name)?;
        }
        attach::check_name(&self.layers_mut(), new)?;
        combine::combine(self.layers_mut(), new, adapters, how)
    }

    /// Merges the updates of the selected adapters into the weights. Afterwards the layers run as fast
    /// as without adapters; [`unmerge`](Self::unmerge) undoes it.
    ///
    /// # Errors
    /// [`AdapterError::State`] if adapters are already merged, are selected by rows, or none is selected;
    /// [`AdapterError::Layer`] if an adapter has values that are not finite (no layer is changed then).
    fn merge(&mut self, packed: PackedMerge) -> Result<MergeReport, AdapterError> {
        check_unmerged(self, "merge")?;
        merge::merge(self.layers_mut(), packed)
    }

    /// Removes merged updates from the weights: within rounding for a dense weight, exactly for a packed
    /// one (its codes were kept).
    fn unmerge(&mut self) {
        merge::unmerge(self.layers_mut());
    }

    /// Merges permanently: afterwards there is no adapter, and a layer of which an adapter trained a
    /// whole copy is replaced by that copy.
    ///
    /// ```
    /// # use burn::tensor::{Device, Tensor};
    /// # use burn_lora_adapter::{*, doc};
    /// # let device = Device::default();
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("default", &lora)?;
    /// let x = Tensor::<2>::ones([1, 16], &device);
    /// let expected = model.linear.forward(x.clone());
    /// model.merge_and_unload(PackedMerge::Requantize)?;
    /// assert!(model.adapter_names().is_empty());
    /// assert!((model.linear.forward(x) - expected).abs().max().into_scalar::<f32>() < 1e-5);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// As [`merge`](Self::merge), unless adapters are already merged.
    fn merge_and_unload(&mut self, packed: PackedMerge) -> Result<MergeReport, AdapterError> {
        let merged = self.layers().iter().any(|(_, layer)| !layer.adapters().merged.is_empty());
        let report = if merged { MergeReport::default() } else { self.merge(packed)? };
        merge::unload(self.layers_mut());
        Ok(report)
    }

    /// Counts all parameters, the trained ones, and the bytes of each kind.
    fn summary(&self) -> Summary
    where
        Self: Module + Sized,
    {
        Summary::of(self)
    }

    /// Parameters of an adapter by role, for the parameter groups of an optimizer.
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter.
    fn param_groups(&self, name: &str) -> Result<ParamGroups, AdapterError> {
        check_known(self, name)?;
        Ok(ParamGroups::of(&self.layers(), name))
    }

    /// Freezes A of an adapter, so that only B is trained (LoRA-FA, arXiv:2308.03303, which also
    /// [multiplies](Self::lora_fa) B's gradient).
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("default", &lora)?;
    /// model.freeze_a("default")?;
    /// assert_eq!(model.summary().trainable, 2 * 16);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter.
    fn freeze_a(&mut self, name: &str) -> Result<(), AdapterError> {
        check_known(self, name)?;
        for (_, layer) in self.layers_mut() {
            if let Some(adapter) = layer.adapters_mut().get_mut(name) {
                adapter.freeze_a();
            }
        }
        Ok(())
    }

    /// Computes the factor by which LoRA-FA multiplies B's gradient at each LoRA layer of an adapter
    /// (arXiv:2308.03303): with `s` the scaling, `(A · Aᵀ + 1e-8 · I)⁺ / s²`, `[rank, rank]`, by the
    /// id of B. Of all steps of B `[out, rank]`, that along `gradient · factor` changes `s · B · A`
    /// most like a step of the whole weight along its own gradient. A has to stay
    /// [frozen](Self::freeze_a).
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("default", &lora)?;
    /// model.freeze_a("default")?;
    /// let factors = model.lora_fa("default")?;
    /// let b = model.linear.adapters().lora("default").unwrap().lora_b.id;
    /// assert_eq!(factors[&b].shape().to_vec(), [2, 2]);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// - [`AdapterError::UnknownAdapter`] if there is no such adapter;
    /// - [`AdapterError::State`] if A is not frozen (A of an embedding never is), if a layer has DoRA,
    ///   or if none has LoRA;
    /// - [`AdapterError::Layer`] if a scaling is 0, or A is not finite;
    /// - [`AdapterError::Device`] if A cannot be read.
    fn lora_fa(&self, name: &str) -> Result<HashMap<ParamId, TensorData>, AdapterError> {
        check_known(self, name)?;
        lora_fa::factors(&self.layers(), name)
    }

    /// Saves an adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, in
    /// float32. Each existing file is replaced atomically.
    ///
    /// An adapter that was initialised from a part of the weight (PiSSA, OLoRA) is saved as the
    /// difference from that initialisation, at twice the rank, so that it fits the original weight.
    /// [`save_adapter_as_is`](Self::save_adapter_as_is) does not convert it.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    ///
    /// model.add_adapter("default", &lora)?;
    /// let folder = std::env::temp_dir().join("burn-lora-save-adapter");
    /// model.save_adapter("default", &folder)?;
    /// model.load_adapter("again", &folder)?;
    /// assert_eq!(model.adapter_names(), ["again", "default"]);
    /// # std::fs::remove_dir_all(folder).ok();
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter, [`AdapterError::Io`] if a file cannot
    /// be written.
    fn save_adapter(&self, name: &str, folder: impl AsRef<Path>) -> Result<(), AdapterError>
    where
        Self: Sized,
    {
        check_known(self, name)?;
        peft::save(&self.layers(), name, folder.as_ref())
    }

    /// Saves an adapter as [`save_adapter`](Self::save_adapter), but never converted. Loading it
    /// subtracts its initialisation from the base again, as PEFT does: for resuming training.
    ///
    /// # Errors
    /// As [`save_adapter`](Self::save_adapter).
    fn save_adapter_as_is(&self, name: &str, folder: impl AsRef<Path>) -> Result<(), AdapterError>
    where
        Self: Sized,
    {
        check_known(self, name)?;
        peft::save_as_is(&self.layers(), name, folder.as_ref())
    }

    /// Loads an adapter from PEFT's files (float32, bfloat16 or float16), in a folder or with the
    /// feature `hub` by id. The first adapter of a model is selected.
    ///
    /// Weights and biases of the base that are in the file replace the base's own, as in PEFT:
    /// permanently, and for every adapter. They are saved with this adapter again.
    ///
    /// The vocabulary of a model such as `Llama` takes the size of the adapter's, if that was trained on a
    /// resized base ([`Adaptable::resize_for_adapter`]); what the file does not have of new rows is the
    /// mean of the others.
    ///
    /// # Errors
    /// - [`AdapterError::Hub`] if the hub did not provide it;
    /// - [`AdapterError::Io`] if a file cannot be read;
    /// - [`AdapterError::Format`] if a tensor is not finite, a setting is not supported, or the
    ///   initialisation subtracted a random part from the base (`pissa_niter`, written by PEFT);
    /// - [`AdapterError::MissingTensors`], [`AdapterError::UnexpectedTensors`],
    ///   [`AdapterError::Shape`] or [`AdapterError::Vocabulary`] if the tensors do not match the
    ///   settings and the model;
    /// - [`AdapterError::Layer`] if a layer does not support the rank or the initialisation;
    /// - [`AdapterError::AdapterExists`] if the name is taken, [`AdapterError::AdapterName`] if it is not
    ///   allowed;
    /// - [`AdapterError::State`] if adapters are merged.
    fn load_adapter(
        &mut self,
        name: &str,
        folder: impl AsRef<Path>,
    ) -> Result<MatchReport, AdapterError>
    where
        Self: Sized,
    {
        check_unmerged(self, "load_adapter")?;
        let folder = burn_lora_io::hub::resolve(folder.as_ref())?;
        resize::load(self, |model| {
            let head = model.output_head().to_owned();
            peft::load(model.layers_mut(), &head, name, &folder)
        })
    }

    /// Loads an adapter of a method that this library does not know, from PEFT's files: `M` reads their
    /// settings.
    ///
    /// # Errors
    /// As [`load_adapter`](Self::load_adapter).
    fn load_adapter_as<M: Method + DeserializeOwned>(
        &mut self,
        name: &str,
        folder: impl AsRef<Path>,
    ) -> Result<MatchReport, AdapterError>
    where
        Self: Sized,
    {
        check_unmerged(self, "load_adapter")?;
        let read = |settings: Settings| {
            let method = M::deserialize(settings.into_value());
            method.map(|method| Arc::new(method) as _).map_err(|error| error.to_string())
        };
        let folder = burn_lora_io::hub::resolve(folder.as_ref())?;
        resize::load(self, |model| {
            let head = model.output_head().to_owned();
            peft::load_as(model.layers_mut(), &head, name, &folder, &read)
        })
    }

    /// Exports an adapter for programs that support neither rank-stabilised scaling nor patterns
    /// (llama.cpp's converter, vLLM), so that they compute the same: every layer has the same rank and
    /// the scaling `alpha / rank`.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// let lora = LoraConfig::new(4, 6).targets(["linear"]).rslora(true);
    /// model.add_adapter("default", &lora)?;
    /// let folder = std::env::temp_dir().join("burn-lora-export-adapter");
    /// model.export_adapter("default", &folder)?;
    /// let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    /// assert!(text.contains("\"lora_alpha\": 12")); // 6 / sqrt(4) = 12 / 4
    /// # std::fs::remove_dir_all(folder).ok();
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter; [`AdapterError::State`], with the
    /// reason, if those programs cannot load it: DoRA, `modules_to_save`, embeddings, a head with tied
    /// embeddings, biases, weights that replaced the base's own; [`AdapterError::Io`] if a file cannot be
    /// written.
    fn export_adapter(&self, name: &str, folder: impl AsRef<Path>) -> Result<(), AdapterError>
    where
        Self: Sized,
    {
        check_known(self, name)?;
        peft::export(&self.layers(), name, folder.as_ref())
    }

    /// Returns the rank that all layers have after an [export](Self::export_adapter): the highest, or 0 without any.
    ///
    /// # Errors
    /// [`AdapterError::UnknownAdapter`] if there is no such adapter.
    fn exported_rank(&self, name: &str) -> Result<usize, AdapterError> {
        check_known(self, name)?;
        Ok(peft::exported_rank(&self.layers(), name).unwrap_or_default())
    }

    /// Resizes layers that have a row for each token (an embedding, an output head): the rows beyond
    /// those of now are their mean; of a smaller vocabulary the first rows remain. Layers with one weight
    /// keep sharing it, and a packed weight is packed again.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// model.resize_rows(&["linear"], 20)?;
    /// assert_eq!(model.linear.shape(), [20, 16]);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::State`] if there is no such layer, one has an adapter, adapters are merged, or
    /// `rows` is 0; [`AdapterError::Quant`] if the storage cannot hold the weight.
    fn resize_rows(&mut self, paths: &[&str], rows: usize) -> Result<(), AdapterError> {
        check_unmerged(self, "resize")?;
        resize::resize(self.layers_mut(), paths, rows)
    }

    /// Quantizes the dense base of every linear layer except the output head.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// use burn::tensor::FloatDType;
    /// use burn_lora_quant::QuantConfig;
    ///
    /// model.quantize_base(&QuantConfig::nf4())?;
    /// assert!(model.linear.packed().is_some());
    /// model.dequantize_base(FloatDType::BF16)?;
    /// assert!(model.linear.packed().is_none());
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::Quant`] if the settings do not go together, [`AdapterError::State`] if adapters are
    /// merged.
    fn quantize_base(&mut self, format: &impl StorageFormat) -> Result<(), AdapterError> {
        check_unmerged(self, "quantize_base")?;
        format.validate()?;
        let head = self.output_head().to_owned();
        let work = Work::items("quantizing layers", self.layers().len());
        for (path, layer) in self.layers_mut() {
            work.advance(1);
            let dense = !layer.is_quantized() && path != head && layer.kind() != LayerKind::Router;
            let Some(base) = layer.base_mut().filter(|_| dense) else { continue };
            *base = base.with_stored(base.weight.dequantize(FloatDType::F32), format)?;
            layer.refresh();
        }
        Ok(())
    }

    /// Computes the products with 4-bit bases in FP8 ([`PackedWeight::with_fp8`]), and returns the
    /// number of these layers. Adapters and all other layers are computed as before.
    ///
    /// ```
    /// # use burn_lora_adapter::{*, doc};
    /// # let mut model = doc::model();
    /// use burn_lora_quant::QuantConfig;
    ///
    /// model.quantize_base(&QuantConfig::nf4())?;
    /// assert_eq!(model.compute_in_fp8()?, 1);
    /// # Ok::<_, AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::Quant`] if the device has no such products or not for one of the weights, or if
    /// no base has 4 bits.
    ///
    /// [`PackedWeight::with_fp8`]: burn_lora_quant::PackedWeight::with_fp8
    fn compute_in_fp8(&mut self) -> Result<usize, AdapterError> {
        let mut found = vec![];
        for (path, layer) in self.layers() {
            let Some(base) = layer.base() else { continue };
            let weight = base.weight.with_fp8().map_err(|error| match error {
                QuantError::Fp8 { reason } => {
                    QuantError::Fp8 { reason: format!("`{path}`: {reason}") }
                }
                other => other,
            });
            if let Some(weight) = weight? {
                found.push((path, weight));
            }
        }
        if found.is_empty() {
            let reason = "no layer has a base of 4 bits: quantize the model first".to_owned();
            return Err(QuantError::Fp8 { reason }.into());
        }
        let count = found.len();
        let mut found = found.into_iter().peekable();
        for (path, layer) in self.layers_mut() {
            if let Some((_, weight)) = found.next_if(|(known, _)| *known == path) {
                layer.base_mut().expect("it has one").weight = weight;
            }
        }
        Ok(count)
    }

    /// Dequantizes every quantized base, in `dtype`.
    ///
    /// # Errors
    /// [`AdapterError::State`] if adapters are merged.
    fn dequantize_base(&mut self, dtype: FloatDType) -> Result<(), AdapterError> {
        check_unmerged(self, "dequantize_base")?;
        for (_, layer) in self.layers_mut() {
            let quantized = layer.is_quantized();
            if let Some(base) = layer.base_mut().filter(|_| quantized) {
                *base = base.with_dense(base.weight.dequantize(FloatDType::F32), dtype);
                layer.refresh();
            }
        }
        Ok(())
    }
}

impl<M: Adaptable + ?Sized> AdaptableExt for M {}

fn check_known(model: &(impl Adaptable + ?Sized), name: &str) -> Result<(), AdapterError> {
    let known = model.adapter_names();
    if known.iter().any(|known| known == name) {
        return Ok(());
    }
    let known = match known.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    Err(AdapterError::UnknownAdapter { name: name.to_owned(), known })
}

fn check_unmerged(model: &(impl Adaptable + ?Sized), what: &str) -> Result<(), AdapterError> {
    for (_, layer) in model.layers() {
        if let Some(merged) = layer.adapters().merged.first() {
            let reason = format!("adapter `{}` is merged: call unmerge first", merged.name);
            return Err(AdapterError::State { what: what.to_owned(), reason });
        }
    }
    Ok(())
}

fn check_selection(
    model: &(impl Adaptable + ?Sized),
    selection: &Selection,
) -> Result<(), AdapterError> {
    check_unmerged(model, "select")?;
    selection.names().into_iter().try_for_each(|name| check_known(model, name))?;
    if let Selection::Adapters(names) = selection
        && names.iter().any(|name| name == BASE)
    {
        let reason = "it goes with rows only; no adapters at all is Selection::base()";
        return Err(AdapterError::AdapterName { name: BASE.into(), reason });
    }
    let Selection::Adapters(names) = selection else { return check_rows(model, selection) };
    for (path, layer) in model.layers() {
        let here: Vec<_> = names.iter().filter_map(|name| layer.adapters().get(name)).collect();
        for (i, one) in here.iter().enumerate() {
            let conflict = |other: &&&LayerAdapter| {
                Some((other.name().to_owned(), one.update.conflict(&other.update)?))
            };
            let Some((other, reason)) = here[..i].iter().find_map(|other| conflict(&other)) else {
                continue;
            };
            let reason = format!("`{}` and `{other}` at `{path}`: {reason}", one.name());
            return Err(AdapterError::State { what: "select".into(), reason });
        }
    }
    Ok(())
}

/// Refuses adapters by rows that the rows of a batch cannot have apart: a batch has one norm.
fn check_rows(
    model: &(impl Adaptable + ?Sized),
    selection: &Selection,
) -> Result<(), AdapterError> {
    for (path, layer) in model.layers() {
        let trained =
            selection.names().into_iter().find(|name| layer.adapters().get(name).is_some());
        if let Some(name) = trained.filter(|_| layer.kind() == LayerKind::Vector) {
            let reason = format!(
                "`{name}` trains `{path}`, of which a batch has one: select it for the whole batch"
            );
            return Err(AdapterError::State { what: "select by rows".into(), reason });
        }
    }
    Ok(())
}
