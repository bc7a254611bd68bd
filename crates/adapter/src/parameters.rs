//! Parameters of an update, by the names of their fields.

use crate::{
    error::AdapterError,
    init::linalg::{tensor, to_vec},
    update::BoxedUpdate,
};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{Device, Tensor},
};

/// A float parameter.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    /// Path in the update: of a plain field its name.
    pub field: String,
    pub id: ParamId,
    pub shape: Vec<usize>,
    pub on_autodiff: bool,
}

/// Returns the float parameters of an update.
pub(crate) fn list(update: &BoxedUpdate) -> Vec<Parameter> {
    struct List(Vec<String>, Vec<Parameter>);
    impl ModuleVisitor for List {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(Parameter {
                field: self.0.join("."),
                id: param.id,
                shape: param.lazy_shape().to_vec(),
                on_autodiff: param.val().is_autodiff(),
            });
        }
    }
    let mut list = List(vec![], vec![]);
    update.visit(&mut list);
    list.1
}

/// Reads a parameter to the host; `None` if there is no such field.
pub(crate) fn read(
    update: &BoxedUpdate,
    field: &str,
    path: &str,
) -> Result<Option<Vec<f32>>, AdapterError> {
    struct Read<'a> {
        at: Vec<String>,
        field: &'a str,
        path: &'a str,
        found: Option<Result<Vec<f32>, AdapterError>>,
    }
    impl ModuleVisitor for Read<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.at.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.at.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.at.join(".") == self.field {
                self.found = Some(to_vec(param.val(), self.path));
            }
        }
    }
    let mut read = Read { at: vec![], field, path, found: None };
    update.visit(&mut read);
    read.found.transpose()
}

/// Replaces the values of a parameter, if there is such a field; it stays the same parameter.
pub(crate) fn write(update: &mut BoxedUpdate, field: &str, values: Vec<f32>, device: &Device) {
    struct Write<'a>(Option<Vec<f32>>, &'a Device);
    impl Change for Write<'_> {
        fn change<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(values) = self.0.take() else { return param };
            let shape = param.shape().dims::<D>();
            param.map(|_| tensor(values, shape, self.1))
        }
    }
    change(update, |at| at == field, Write(Some(values), device));
}

/// Trains or freezes some parameters.
pub(crate) fn train(update: &mut BoxedUpdate, fields: &[&str], on: bool) {
    struct Train(bool);
    impl Change for Train {
        fn change<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.set_require_grad(self.0)
        }
    }
    change(update, |at| fields.contains(&at), Train(on));
}

/// What becomes of a parameter.
trait Change {
    fn change<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

fn change(update: &mut BoxedUpdate, fields: impl Fn(&str) -> bool, change: impl Change) {
    struct Map<F, C> {
        at: Vec<String>,
        fields: F,
        change: C,
    }
    impl<F: Fn(&str) -> bool, C: Change> ModuleMapper for Map<F, C> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.at.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.at.pop();
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if (self.fields)(&self.at.join(".")) { self.change.change(param) } else { param }
        }
    }
    *update = update.clone().map(&mut Map { at: vec![], fields, change });
}

/// Returns `true` if a parameter is trained, also where autodiff is off. A parameter that is not
/// initialised yet counts as frozen, because checking it would initialise it.
pub(crate) fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    param.is_initialized() && param.clone().train().is_require_grad()
}
