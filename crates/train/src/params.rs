//! The trained parameters of a model: which they are, their gradients, and new values for them.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{FloatDType, Gradients, Tensor, TensorData},
};
use std::collections::{BTreeMap, HashMap};

/// Data that were read from a device, in memory of their own: that which CUDA reads into is taken
/// again by later reads.
pub(crate) fn own(data: TensorData) -> TensorData {
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape().clone(), data.dtype())
}

/// A parameter that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trained {
    pub id: ParamId,
    /// Its path in the model.
    pub path: String,
    pub shape: Vec<usize>,
}

/// The parameters of a model that require a gradient, in its order.
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
        // One that is shared, as a tied head is, counts once.
        if param.is_require_grad() && !self.found.iter().any(|found| found.id == param.id) {
            let (path, shape) = (self.path.join("."), param.lazy_shape().to_vec());
            self.found.push(Trained { id: param.id, path, shape });
        }
    }
}

/// Values of trained parameters, each as one vector in float32: gradients, or new values.
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

/// The trained parameters' values.
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

/// The path of a parameter that is not trained and has values that are infinite or not a number.
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
        // Of a sum, so that no other tensor of its size is made.
        let sum = param.val().inner().abs().cast(FloatDType::F32).sum();
        if sum.try_into_data().is_ok_and(|sum| sum.iter::<f32>().any(|sum| !sum.is_finite())) {
            self.found = Some(self.path.join("."));
        }
    }
}

/// The model with each trained parameter replaced by what `new` makes of its value.
pub(crate) fn update<M: Module>(model: M, new: impl FnMut(ParamId, Tensor<1>) -> Tensor<1>) -> M {
    let mut mapper = Update { new, done: HashMap::new() };
    model.map(&mut mapper)
}

struct Update<F> {
    new: F,
    done: Flat,
}

impl<F: FnMut(ParamId, Tensor<1>) -> Tensor<1>> ModuleMapper for Update<F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let (shape, dtype): (_, FloatDType) = (value.shape(), value.dtype().into());
        // A shared parameter comes by more than once, and changes once.
        let new = match self.done.remove(&id) {
            Some(new) => new,
            None => (self.new)(id, flat(value.inner())),
        };
        self.done.insert(id, new.clone());
        let value = Tensor::from_inner(new.reshape(shape).cast(dtype)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count]).cast(FloatDType::F32)
}
