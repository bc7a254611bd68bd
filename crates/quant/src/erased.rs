//! Type erasure of modules, for traits through which users add modules of their own.
//!
//! Burn's visitors and mappers are generic over the rank of a parameter, so that a `dyn Module` is
//! impossible. Here a parameter is passed as [`Any`] with its rank, and downcast on the other side.
//! [`erased_module!`](crate::erased_module) makes a boxed trait object a module.

use burn::{
    module::{Flag, ModuleMapper, ModuleVisitor, Param},
    tensor::{Bool, Int, Tensor},
};
use std::any::Any;

/// A visitor of parameters of any rank.
#[doc(hidden)]
pub trait VisitAny {
    fn float(&mut self, rank: usize, param: &dyn Any);
    fn int(&mut self, rank: usize, param: &dyn Any);
    fn bool(&mut self, rank: usize, param: &dyn Any);
    fn flag(&mut self, flag: &Param<Flag>);
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

/// A mapper of parameters of any rank; it returns a parameter of the same type.
#[doc(hidden)]
pub trait MapAny {
    fn float(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any>;
    fn int(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any>;
    fn bool(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any>;
    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag>;
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

/// Erasing side: forwards a module's visits and maps without the types.
#[doc(hidden)]
pub struct Outwards<'a, T: ?Sized>(pub &'a mut T);

/// Restoring side: forwards visits and maps with the types.
#[doc(hidden)]
pub struct Inwards<'a, T>(pub &'a mut T);

impl ModuleVisitor for Outwards<'_, dyn VisitAny + '_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.float(D, param);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.int(D, param);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.0.bool(D, param);
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        self.0.flag(flag);
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

impl ModuleMapper for Outwards<'_, dyn MapAny + '_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        same(self.0.float(D, Box::new(param)))
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        same(self.0.int(D, Box::new(param)))
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        same(self.0.bool(D, Box::new(param)))
    }

    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.flag(flag)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

fn same<T: 'static>(param: Box<dyn Any>) -> T {
    *param.downcast().expect("a mapper keeps the type of a parameter")
}

/// Runs an expression with a constant rank in place of one known only at run time.
#[doc(hidden)]
#[macro_export]
macro_rules! with_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        $crate::with_rank!(@ $rank, $d => $body; 0 1 2 3 4 5 6 7 8)
    };
    (@ $rank:expr, $d:ident => $body:expr; $($n:literal)*) => {
        match $rank {
            $($n => {
                const $d: usize = $n;
                $body
            })*
            rank => panic!("a tensor of {rank} dimensions"),
        }
    };
}

impl<V: ModuleVisitor> VisitAny for Inwards<'_, V> {
    fn float(&mut self, rank: usize, param: &dyn Any) {
        with_rank!(rank, D => self.0.visit_float::<D>(param.downcast_ref().expect(KNOWN)))
    }

    fn int(&mut self, rank: usize, param: &dyn Any) {
        with_rank!(rank, D => self.0.visit_int::<D>(param.downcast_ref().expect(KNOWN)))
    }

    fn bool(&mut self, rank: usize, param: &dyn Any) {
        with_rank!(rank, D => self.0.visit_bool::<D>(param.downcast_ref().expect(KNOWN)))
    }

    fn flag(&mut self, flag: &Param<Flag>) {
        self.0.visit_flag(flag);
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }

    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

impl<M: ModuleMapper> MapAny for Inwards<'_, M> {
    fn float(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any> {
        with_rank!(rank, D => Box::new(self.0.map_float::<D>(same(param))))
    }

    fn int(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any> {
        with_rank!(rank, D => Box::new(self.0.map_int::<D>(same(param))))
    }

    fn bool(&mut self, rank: usize, param: Box<dyn Any>) -> Box<dyn Any> {
        with_rank!(rank, D => Box::new(self.0.map_bool::<D>(same(param))))
    }

    fn flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        self.0.map_flag(flag)
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }

    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

const KNOWN: &str = "a parameter of the rank that came with it";

/// Implements Burn's module traits for a boxed trait object `$dyn`, which is implemented for every
/// module with the trait `$trait`.
///
/// `erased_module!(Boxed, DynTrait, Trait, ErasedTrait)` needs `struct Boxed(Box<dyn DynTrait>)`
/// and `trait DynTrait: ErasedTrait`, and defines `ErasedTrait`, which every `Trait: Module`
/// implements.
#[doc(hidden)]
#[macro_export]
macro_rules! erased_module {
    ($boxed:ident, $dyn:ident, $trait:ident, $erased:ident) => {
        /// The object-safe part of a module.
        #[doc(hidden)]
        pub trait $erased: ::std::fmt::Debug + Send + Sync {
            fn visit_any(&self, visitor: &mut dyn $crate::erased::VisitAny);
            fn map_any(self: Box<Self>, mapper: &mut dyn $crate::erased::MapAny) -> Box<dyn $dyn>;
            fn to_device_any(self: Box<Self>, device: &::burn::tensor::Device) -> Box<dyn $dyn>;
            fn fork_any(self: Box<Self>, device: &::burn::tensor::Device) -> Box<dyn $dyn>;
            fn train_any(self: Box<Self>) -> Box<dyn $dyn>;
            fn valid_any(&self) -> Box<dyn $dyn>;
            fn materialize_any(self: Box<Self>) -> Box<dyn $dyn>;
            fn devices_any(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices;
            fn clone_any(&self) -> Box<dyn $dyn>;
            fn as_any(&self) -> &dyn ::std::any::Any;
            fn as_any_mut(&mut self) -> &mut dyn ::std::any::Any;
        }

        impl<T: $trait> $erased for T {
            fn visit_any(&self, visitor: &mut dyn $crate::erased::VisitAny) {
                self.visit(&mut $crate::erased::Outwards(visitor));
            }
            fn map_any(self: Box<Self>, mapper: &mut dyn $crate::erased::MapAny) -> Box<dyn $dyn> {
                Box::new((*self).map(&mut $crate::erased::Outwards(mapper)))
            }
            fn to_device_any(self: Box<Self>, device: &::burn::tensor::Device) -> Box<dyn $dyn> {
                Box::new((*self).to_device(device))
            }
            fn fork_any(self: Box<Self>, device: &::burn::tensor::Device) -> Box<dyn $dyn> {
                Box::new((*self).fork(device))
            }
            fn train_any(self: Box<Self>) -> Box<dyn $dyn> {
                Box::new(::burn::module::Module::train(*self))
            }
            fn valid_any(&self) -> Box<dyn $dyn> {
                Box::new(self.valid())
            }
            fn materialize_any(self: Box<Self>) -> Box<dyn $dyn> {
                Box::new((*self).materialize())
            }
            fn devices_any(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                self.collect_devices(devices)
            }
            fn clone_any(&self) -> Box<dyn $dyn> {
                Box::new(self.clone())
            }
            fn as_any(&self) -> &dyn ::std::any::Any {
                self
            }
            fn as_any_mut(&mut self) -> &mut dyn ::std::any::Any {
                self
            }
        }

        impl Clone for $boxed {
            fn clone(&self) -> Self {
                Self(self.0.clone_any())
            }
        }

        impl ::std::fmt::Debug for $boxed {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl ::burn::module::Module for $boxed {
            fn collect_devices(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                self.0.devices_any(devices)
            }
            fn fork(self, device: &::burn::tensor::Device) -> Self {
                Self(self.0.fork_any(device))
            }
            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                Self(self.0.to_device_any(device))
            }
            fn train(self) -> Self {
                Self(self.0.train_any())
            }
            fn valid(&self) -> Self {
                Self(self.0.valid_any())
            }
            fn materialize(self) -> Self {
                Self(self.0.materialize_any())
            }
            fn visit<V: ::burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                self.0.visit_any(&mut $crate::erased::Inwards(visitor));
            }
            fn map<M: ::burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                Self(self.0.map_any(&mut $crate::erased::Inwards(mapper)))
            }
        }

        impl ::burn::module::ModuleDisplay for $boxed {}

        impl ::burn::module::ModuleDisplayDefault for $boxed {
            fn content(&self, content: ::burn::module::Content) -> Option<::burn::module::Content> {
                Some(content.add_formatted(&format!("{:?}", self.0)))
            }
        }
    };
}
