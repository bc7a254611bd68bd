//! Adapted layers of a model, by path.

use crate::{error::AdapterError, layer::AdaptedLayer};

/// Layers with their paths.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let layers: Layers<'_> = model.layers();
/// assert_eq!(layers[0].0, "linear");
/// ```
pub type Layers<'a> = Vec<(String, &'a dyn AdaptedLayer)>;

/// Mutable layers with their paths.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// model.add_adapter("default", &lora)?;
/// let layers: LayersMut<'_> = model.layers_mut();
/// for (_, layer) in layers {
///     layer.adapters_mut().lora_mut("default").unwrap().set_scaling(0.5);
/// }
/// # Ok::<_, AdapterError>(())
/// ```
pub type LayersMut<'a> = Vec<(String, &'a mut dyn AdaptedLayer)>;

/// A model that lists its adapted layers by path.
///
/// Burn's visitors see parameters, not layers, so a model lists the fields that hold adapted layers
/// or models with such layers: [`adaptable!`](crate::adaptable) does it in one line. (A small trait
/// and a `macro_rules` macro, rather than a derive macro: no crate to build, nothing hidden, and a
/// model whose paths are not its field names implements the two functions itself.)
///
/// ```
/// use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor, activation::relu}};
/// use burn_lora_adapter::{AdaptableExt, AdaptedLinear, LoraConfig, adaptable};
///
/// #[derive(Module, Debug)]
/// struct Mlp {
///     layers: Vec<AdaptedLinear>,
///     head: AdaptedLinear,
/// }
/// adaptable!(Mlp { layers, head });
///
/// impl Mlp {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.head.forward(self.layers.iter().fold(x, |x, layer| relu(layer.forward(x))))
///     }
/// }
///
/// let device = Device::default();
/// let linear = |out| AdaptedLinear::from(LinearConfig::new(16, out).init(&device));
/// let mlp = Mlp { layers: vec![linear(16), linear(16)], head: linear(4) };
/// let mlp = mlp.with_adapter(&LoraConfig::new(4, 8).targets(["layers.0", "head"]))?.train();
///
/// let loss = mlp.forward(Tensor::ones([2, 16], &device)).sum();
/// let grads = loss.backward();
/// let adapter = mlp.head.adapters().lora("default").unwrap();
/// assert!(adapter.lora_b.val().grad(&grads).is_some());
/// # use burn_lora_adapter::AdaptedLayer;
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
pub trait Adaptable {
    /// Appends the layers below `path`, each with its full path.
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>);

    /// Appends the same layers in the same order, as mutable references.
    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>);

    /// Path of the output head, which `all_linear` leaves out.
    fn output_head(&self) -> &str {
        "lm_head"
    }

    /// Resizes the vocabulary to that of an adapter which was trained on a resized base, and returns
    /// `true`. By default `false`: such an adapter is refused.
    ///
    /// # Errors
    /// Those of [`resize_rows`](crate::AdaptableExt::resize_rows).
    fn resize_for_adapter(&mut self, tokens: usize) -> Result<bool, AdapterError> {
        let _ = tokens;
        Ok(false)
    }

    /// Returns all layers with their paths.
    fn layers(&self) -> Layers<'_> {
        let mut layers = vec![];
        self.collect("", &mut layers);
        layers
    }

    /// Returns all layers with their paths, as mutable references.
    fn layers_mut(&mut self) -> LayersMut<'_> {
        let mut layers = vec![];
        self.collect_mut("", &mut layers);
        layers
    }
}
