//! A copy of a model that is not trained any more: adapters in the dtype in which they are used, a head in fewer bits.

#[cfg(feature = "cpu")]
use crate::layers::Adaptable;
use crate::{frozen::LayerKind, layers::LayersMut, methods::lora::LoraAdapter};
#[cfg(feature = "cpu")]
use burn::tensor::Device;
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{FloatDType, Tensor},
};
#[cfg(feature = "cpu")]
use burn_lora_quant::{EightBitWeight, Frozen};

/// Casts A and B of LoRA at linear layers, which every product would do else: for a copy of a model that is not trained.
pub(crate) fn cast_lora(layers: LayersMut<'_>, dtype: FloatDType) {
    for (_, layer) in layers {
        if !matches!(layer.kind(), LayerKind::Linear | LayerKind::Expert) {
            continue;
        }
        for adapter in &mut layer.adapters_mut().updates {
            let plain = adapter.update.downcast_ref::<LoraAdapter>().is_some();
            if plain && !adapter.update.rescales() {
                let update = adapter.update.clone();
                adapter.update = update.map(&mut Cast(dtype));
            }
        }
    }
}

/// Stores a dense head in 8 bits, if these hold it.
#[cfg(feature = "cpu")]
pub(crate) fn compact_head(model: &mut (impl Adaptable + ?Sized)) {
    let path = model.output_head().to_owned();
    let head = model.layers_mut().into_iter().find(|(known, _)| *known == path);
    let Some(base) = head.and_then(|(_, layer)| layer.base_mut()) else { return };
    let weight = base.weight.dense().map(Param::val);
    let weight = weight.filter(|weight| weight.device() == Device::flex());
    if let Some(stored) = weight.and_then(EightBitWeight::exact) {
        base.weight = Frozen::new(stored);
    }
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        Param::from_mapped_value(id, value.cast(self.0), mapper)
    }
}
