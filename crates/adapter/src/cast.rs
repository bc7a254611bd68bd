//! Adapters in the dtype that they are used in.

use crate::{frozen::LayerKind, layers::LayersMut, methods::lora::LoraAdapter};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{FloatDType, Tensor},
};

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

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        Param::from_mapped_value(id, value.cast(self.0), mapper)
    }
}
