//! Trained parameters of a model: their list, gradients and updates.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{FloatDType, Gradients, Tensor, TensorData},
};
use std::collections::{BTreeMap, HashMap};

/// Copies data read from a device into memory of their own. Burn reads when the bytes are looked at, and
/// they hold the device's memory.
pub(crate) fn own(data: TensorData) -> TensorData {
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape().clone(), data.dtype())
}

/// A trained parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trained {
    pub id: ParamId,
    /// Path in the model.
    pub path: String,
    pub shape: Vec<usize>,
}

/// Returns the parameters of a model that require a gradient, in the order of the model.
pub(crate) fn trained<M: Module>(model: &M) -> Vec<Trained> {
    let mut list = List::default();
    model.visit(&mut list);
    list.found
}

#[derive(Default)]
struct List {
    path: Vec<String>,
    found: Vec<Trained>,
}

impl ModuleVisitor for List {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A shared parameter, such as a tied head, counts once.
        if param.is_require_grad() && !self.found.iter().any(|found| found.id == param.id) {
            let (path, shape) = (self.path.join("."), param.lazy_shape().to_vec());
            self.found.push(Trained { id: param.id, path, shape });
        }
    }
}

/// Values of trained parameters, each as one float32 vector: gradients, or new values.
pub(crate) type Flat = HashMap<ParamId, Tensor<1>>;

/// Adds the gradients of one backward pass.
pub(crate) fn add_gradients<M: Module>(sums: &mut Flat, model: &M, gradients: &mut Gradients) {
    model.visit(&mut Add { sums, gradients });
}

struct Add<'a> {
    sums: &'a mut Flat,
    gradients: &'a mut Gradients,
}

impl ModuleVisitor for Add<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        if let Some(grad) = param.val().grad_remove(self.gradients) {
            let grad = flat(grad);
            let sum = match self.sums.remove(&param.id) {
                Some(sum) => sum + grad,
                None => grad,
            };
            self.sums.insert(param.id, sum);
        }
    }
}

/// Returns the values of the trained parameters, by path.
pub(crate) fn values<M: Module>(model: &M) -> BTreeMap<String, Tensor<1>> {
    let mut read = Read {
        ids: trained(model).into_iter().map(|p| (p.id, p.path)).collect(),
        found: BTreeMap::new(),
    };
    model.visit(&mut read);
    read.found
}

struct Read {
    ids: HashMap<ParamId, String>,
    found: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for Read {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(path) = self.ids.remove(&param.id) {
            self.found.insert(path, flat(param.val().inner()));
        }
    }
}

/// Returns the path of a frozen parameter with values that are infinite or not a number.
pub(crate) fn not_finite<M: Module>(model: &M) -> Option<String> {
    let mut find = Find::default();
    model.visit(&mut find);
    find.found
}

#[derive(Default)]
struct Find {
    path: Vec<String>,
    found: Option<String>,
}

impl ModuleVisitor for Find {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.found.is_some() || param.is_require_grad() {
            return;
        }
        // Of the sum, so that no further tensor of its size is allocated.
        let sum = param.val().inner().abs().cast(FloatDType::F32).sum();
        if sum.try_into_data().is_ok_and(|sum| sum.iter::<f32>().any(|sum| !sum.is_finite())) {
            self.found = Some(self.path.join("."));
        }
    }
}

/// Returns the model with the new values of its trained parameters; those without one keep theirs.
pub(crate) fn update<M: Module>(model: M, new: Flat) -> M {
    model.map(&mut Update { new })
}

struct Update {
    new: Flat,
}

impl ModuleMapper for Update {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // (A shared parameter is visited more than once.)
        let Some(new) = self.new.get(&param.id).cloned() else { return param };
        let (id, value, mapper) = param.consume();
        let (shape, dtype): (_, FloatDType) = (value.shape(), value.dtype().into());
        let value = Tensor::from_inner(new.reshape(shape).cast(dtype)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count]).cast(FloatDType::F32)
}
