//! Paths of layers in a model: names of fields and indices of items.

use crate::layers::{Adaptable, Layers, LayersMut};

/// Implements [`Adaptable`](crate::Adaptable) from the fields that hold adapted layers, or models with
/// such layers.
///
/// Paths are field names, with indices for the items of a list, as in checkpoints:
/// `layers.0.self_attn.q_proj`. `field as "name"` uses another name in the path. See
/// [`Adaptable`](crate::Adaptable) for an example.
#[macro_export]
macro_rules! adaptable {
    ($model:ty { $($field:ident $(as $name:literal)?),+ $(,)? }) => {
        impl $crate::Adaptable for $model {
            fn collect<'a>(&'a self, path: &str, layers: &mut $crate::Layers<'a>) {
                $($crate::Adaptable::collect(
                    &self.$field,
                    &$crate::join(path, $crate::adaptable!(@name $field $($name)?)),
                    layers,
                );)+
            }

            fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut $crate::LayersMut<'a>) {
                $($crate::Adaptable::collect_mut(
                    &mut self.$field,
                    &$crate::join(path, $crate::adaptable!(@name $field $($name)?)),
                    layers,
                );)+
            }
        }
    };
    (@name $field:ident $name:literal) => { $name };
    (@name $field:ident) => { stringify!($field) };
}

/// Appends a part to a path.
#[doc(hidden)]
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

macro_rules! leaf {
    ($($layer:ty),*) => {$(
        impl Adaptable for $layer {
            fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
                layers.push((path.to_owned(), self));
            }

            fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
                layers.push((path.to_owned(), self));
            }
        }
    )*};
}

leaf!(crate::AdaptedLinear, crate::AdaptedEmbedding, crate::AdaptedVector);

impl<T: Adaptable> Adaptable for Vec<T> {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        for (i, item) in self.iter().enumerate() {
            item.collect(&join(path, &i.to_string()), layers);
        }
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        for (i, item) in self.iter_mut().enumerate() {
            item.collect_mut(&join(path, &i.to_string()), layers);
        }
    }
}

impl<T: Adaptable> Adaptable for Option<T> {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.iter().for_each(|item| item.collect(path, layers));
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.iter_mut().for_each(|item| item.collect_mut(path, layers));
    }
}
