//! What can be done with a model that offers its layers.

use crate::{
    active::ActiveAdapters,
    attach,
    combine::{self, Combine},
    config::LoraConfig,
    error::AdapterError,
    groups::ParamGroups,
    init::eva::InputStats,
    layers::Adaptable,
    merge::{self, MergeReport, PackedMerge},
    peft,
    selection::{BASE, Selection},
    summary::Summary,
    targets::MatchReport,
};
use burn::{module::Module, tensor::FloatDType};
use burn_lora_quant::StorageFormat;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// What can be done with the adapters of a model: any that is [`Adaptable`] has it.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// model.add_adapter("default", &LoraConfig::new(2, 4).targets(["linear"]))?;
/// model.merge_and_unload(PackedMerge::Requantize)?;
/// # Ok::<_, AdapterError>(())
/// ```
pub trait AdaptableExt: Adaptable {
    /// Attaches a new adapter. The first one is selected, and trained; later ones wait for
    /// [`select`](Self::select). On a model that is not in training, call `.train()` after it.
    /// Parameters that no layer offers stay as they are, trained ones too:
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
    /// Settings that cannot be used, or that match nothing; a name that is taken; adapters that are
    /// merged.
    fn add_adapter(
        &mut self,
        name: &str,
        config: &LoraConfig,
    ) -> Result<MatchReport, AdapterError> {
        check_unmerged(self, "add_adapter")?;
        let head = self.output_head().to_owned();
        attach::add(self.layers_mut(), &head, name, config, None)
    }

    /// Attaches a new adapter that starts from the main directions of each layer's inputs
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
    /// As [`add_adapter`](Self::add_adapter); a layer without statistics.
    fn add_adapter_with_inputs(
        &mut self,
        name: &str,
        config: &LoraConfig,
        inputs: &BTreeMap<String, InputStats>,
    ) -> Result<MatchReport, AdapterError> {
        check_unmerged(self, "add_adapter")?;
        let head = self.output_head().to_owned();
        attach::add(self.layers_mut(), &head, name, config, Some(inputs))
    }

    /// The model with a new adapter `default`, and every other parameter frozen.
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
    fn with_adapter(self, config: &LoraConfig) -> Result<Self, AdapterError>
    where
        Self: Module + Sized,
    {
        let mut model = self.no_grad();
        model.add_adapter("default", config)?;
        Ok(model)
    }

    /// The names of all adapters, sorted.
    fn adapter_names(&self) -> Vec<String> {
        self.adapter_configs().into_keys().collect()
    }

    /// The settings of all adapters by name.
    fn adapter_configs(&self) -> BTreeMap<String, Arc<LoraConfig>> {
        let layers = self.layers();
        let configs = layers.iter().flat_map(|(_, layer)| layer.adapters().configs());
        configs.map(|(name, config)| (name.to_owned(), config.clone())).collect()
    }

    /// Adapters for a batch to bring: checked once, used by each layer, and the model stays as it is.
    /// See [`ActiveAdapters`] for an example.
    ///
    /// # Errors
    /// An adapter that is not there; adapters that are merged.
    fn activate(&self, selection: Selection) -> Result<ActiveAdapters, AdapterError> {
        check_selection(self, &selection)?;
        Ok(ActiveAdapters::new(selection))
    }

    /// Switches to other adapters, for good: they take part from now on and they alone are trained.
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
    /// An adapter that is not there; adapters that are merged.
    fn select(&mut self, selection: Selection) -> Result<(), AdapterError> {
        let active = self.activate(selection)?;
        let mut layers = self.layers_mut();
        for (_, layer) in &mut layers {
            layer.adapters_mut().selected = active.clone();
        }
        attach::train_selected(layers);
        Ok(())
    }

    /// Runs something with other adapters, or none, and goes back to those before (also after a
    /// panic).
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

    /// Takes an adapter away. What a residual initialisation took out of the base stays out.
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
    /// An adapter that is not there, or is merged.
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

    /// Makes a new adapter of others, each with a weight. It is not selected.
    ///
    /// # Errors
    /// An adapter that is not there, a name that is taken, or adapters that do not go together.
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

    /// Adds the updates of the adapters that are selected to the weights. Afterwards the layers run
    /// as fast as without adapters; [`unmerge`](Self::unmerge) undoes it.
    ///
    /// # Errors
    /// Adapters that are merged already, or selected by rows; adapters whose values are not finite (no
    /// layer is changed then).
    fn merge(&mut self, packed: PackedMerge) -> Result<MergeReport, AdapterError> {
        check_unmerged(self, "merge")?;
        merge::merge(self.layers_mut(), packed)
    }

    /// Takes merged updates out of the weights again: of a dense weight within rounding, of a packed
    /// one exactly (its codes were kept).
    fn unmerge(&mut self) {
        merge::unmerge(self.layers_mut());
    }

    /// Merges for good: afterwards there is no adapter, and a layer that an adapter trained whole is
    /// that copy.
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
    /// As [`merge`](Self::merge), for adapters that are not merged yet.
    fn merge_and_unload(&mut self, packed: PackedMerge) -> Result<MergeReport, AdapterError> {
        let merged = self.layers().iter().any(|(_, layer)| !layer.adapters().merged.is_empty());
        let report = if merged { MergeReport::default() } else { self.merge(packed)? };
        merge::unload(self.layers_mut());
        Ok(report)
    }

    /// How many parameters there are, how many are trained, and the bytes of each kind.
    fn summary(&self) -> Summary
    where
        Self: Module + Sized,
    {
        Summary::of(self)
    }

    /// The parameters of an adapter by their role, for an optimizer's groups.
    ///
    /// # Errors
    /// An adapter that is not there.
    fn param_groups(&self, name: &str) -> Result<ParamGroups, AdapterError> {
        check_known(self, name)?;
        Ok(ParamGroups::of(&self.layers(), name))
    }

    /// Freezes A of an adapter, so that B alone is trained (LoRA-FA, arXiv:2308.03303).
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
    /// An adapter that is not there.
    fn freeze_a(&mut self, name: &str) -> Result<(), AdapterError> {
        check_known(self, name)?;
        for (_, layer) in self.layers_mut() {
            if let Some(lora) = layer.adapters_mut().lora_mut(name) {
                lora.freeze_a();
            }
        }
        Ok(())
    }

    /// Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, in
    /// float32. Files that are there are replaced whole or not at all.
    ///
    /// An adapter that started from a part of the weight (PiSSA, OLoRA) is written as
    /// the difference from that start, at twice the rank: it fits the weight as it was.
    /// [`save_adapter_as_is`](Self::save_adapter_as_is) leaves it alone.
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
    /// An adapter that is not there; what the system says.
    fn save_adapter(&self, name: &str, folder: impl AsRef<Path>) -> Result<(), AdapterError>
    where
        Self: Sized,
    {
        check_known(self, name)?;
        peft::save(&self.layers(), name, folder.as_ref())
    }

    /// Writes an adapter as [`save_adapter`](Self::save_adapter), but never converted. Loading it
    /// takes its initialisation out of the base again, as PEFT does: for going on with training.
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

    /// Attaches an adapter from PEFT's files (of float32, bfloat16 or float16). The first adapter of
    /// a model is selected.
    ///
    /// Weights and biases of the base that are in the file replace the base's own, as in PEFT: for
    /// good, and for every adapter. They are saved with this one again.
    ///
    /// # Errors
    /// Files that cannot be read; tensors that are missing, not known, of another shape or not finite;
    /// settings that are not supported; a start that took a random part out of the base
    /// (`pissa_niter`, written by PEFT); a name that is taken.
    fn load_adapter(
        &mut self,
        name: &str,
        folder: impl AsRef<Path>,
    ) -> Result<MatchReport, AdapterError>
    where
        Self: Sized,
    {
        check_unmerged(self, "load_adapter")?;
        let head = self.output_head().to_owned();
        peft::load(self.layers_mut(), &head, name, folder.as_ref())
    }

    /// Writes an adapter so that programs that know neither rank-stabilised scaling nor patterns
    /// (llama.cpp's converter, vLLM) compute the same: every layer has the same rank and
    /// `alpha / rank` is the factor of each.
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
    /// What those programs cannot load, with the reason: DoRA, `modules_to_save`, embeddings, a head that
    /// is the embedding, biases, weights of the base that the adapter brought.
    fn export_adapter(&self, name: &str, folder: impl AsRef<Path>) -> Result<(), AdapterError>
    where
        Self: Sized,
    {
        check_known(self, name)?;
        peft::export(&self.layers(), name, folder.as_ref())
    }

    /// Quantizes the dense base of linear layers but the output head's.
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
    /// Settings that do not go together; a layer with merged adapters.
    fn quantize_base(&mut self, format: &impl StorageFormat) -> Result<(), AdapterError> {
        check_unmerged(self, "quantize_base")?;
        format.validate()?;
        let head = self.output_head().to_owned();
        for (path, layer) in self.layers_mut() {
            let dense = !layer.is_quantized() && path != head;
            let Some(base) = layer.base_mut().filter(|_| dense) else { continue };
            *base = base.with_stored(base.weight.dequantize(FloatDType::F32), format)?;
            layer.refresh();
        }
        Ok(())
    }

    /// Makes quantized bases dense.
    ///
    /// # Errors
    /// Layers with merged adapters.
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
    Ok(())
}
