//! Mixture of experts.

use super::{LinearCosts, Mlp, Parameters, TokenCost};
use crate::{
    context::Context,
    error::LlamaError,
    spec::{ExpertsSpec, RouterWeights},
};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData, activation::softmax},
};
use burn_lora_adapter::{Adaptable, AdaptedLinear, LayerKind, Layers, LayersMut, join};
use burn_lora_kernels::permute_rows;

/// Mixture of experts: for each token the router chooses some experts, whose outputs are added up
/// with its weights.
///
/// The tokens are sorted by expert, which has to wait for the router's logits to be read from the
/// device: once per layer.
#[derive(Module, Debug)]
pub struct SparseExperts {
    /// Router, `[experts, hidden]`; under the name that its specification gives.
    pub router: AdaptedLinear,
    /// Experts.
    pub experts: Vec<Mlp>,
    /// Specification.
    #[module(skip)]
    pub spec: ExpertsSpec,
}

impl Adaptable for SparseExperts {
    fn collect<'a>(&'a self, path: &str, layers: &mut Layers<'a>) {
        self.router.collect(&join(path, self.spec.router.name), layers);
        self.experts.collect(&join(path, "experts"), layers);
    }

    fn collect_mut<'a>(&'a mut self, path: &str, layers: &mut LayersMut<'a>) {
        self.router.collect_mut(&join(path, self.spec.router.name), layers);
        self.experts.collect_mut(&join(path, "experts"), layers);
    }
}

impl SparseExperts {
    pub(crate) fn build(
        from: &dyn Parameters,
        path: &str,
        hidden: usize,
        spec: &ExpertsSpec,
    ) -> Result<Self, LlamaError> {
        let router = format!("{path}.{}", spec.router.name);
        let router = from.dense(&router, [spec.num_experts, hidden], spec.router.bias)?;
        let experts = (0..spec.num_experts).map(|index| {
            let mlp = Mlp::build(from, &format!("{path}.experts.{index}"), hidden, &spec.mlp)?;
            Ok::<_, LlamaError>(mlp.of_expert())
        });
        Ok(Self {
            router: router.of_kind(LayerKind::Router),
            experts: experts.collect::<Result<_, _>>()?,
            spec: spec.clone(),
        })
    }

    /// Returns the weighted sum of the experts' outputs.
    ///
    /// # Shapes
    /// - x, output: `[batch, sequence, hidden]`
    ///
    /// # Panics
    /// If the logits of the router cannot be read from the device.
    pub fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let Some(adapters) = context.adapters() else { return self.mix(x, context) };
        adapters.each(x, |x, adapters| {
            let adapters = Some(adapters.clone());
            self.mix(x, &Context { adapters, ..context.clone() })
        })
    }

    /// The weighted sum, for rows with the same adapters.
    fn mix(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [batch, length, hidden] = x.dims();
        let (tokens, chosen) = (batch * length, self.spec.experts_per_token);
        let logits = self.router.forward_with(x.clone(), context.adapters());
        let logits = logits.reshape([tokens, self.spec.num_experts]).cast(FloatDType::F32);
        let routing = Routing::new(logits.clone(), chosen);
        let weights = self.weights(logits, &routing);

        let rows = x.reshape([tokens, 1, hidden]).expand([tokens, chosen, hidden]);
        let rows = routing.sort(rows.reshape([tokens * chosen, hidden]));
        let weights = routing.sort(weights.reshape([tokens * chosen, 1]));
        let mut outputs = vec![];
        each_part(rows, &routing.parts, &mut |expert, rows| {
            outputs.push(self.experts[expert].forward(rows, context));
        });
        let output = Tensor::cat(outputs, 0);
        let dtype = output.dtype();
        let output = (output.cast(FloatDType::F32) * weights).cast(dtype);
        let output = routing.unsort(output).reshape([tokens, chosen, hidden]).sum_dim(1);
        output.reshape([batch, length, hidden])
    }

    /// Weights of the chosen experts of each token, `[tokens, chosen]`.
    fn weights(&self, logits: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let chosen = |values: Tensor<2>| values.gather(1, routing.experts.clone());
        match self.spec.router.weights {
            RouterWeights::Softmax => chosen(softmax(logits, 1)),
            RouterWeights::NormalizedSoftmax => {
                let parts = chosen(softmax(logits, 1));
                parts.clone() / parts.sum_dim(1)
            }
            RouterWeights::SoftmaxOfChosen => softmax(chosen(logits), 1),
        }
    }
}

/// Which token goes through which experts.
struct Routing {
    /// Chosen experts of each token, `[tokens, chosen]`, that with the largest logit first.
    experts: Tensor<2, Int>,
    /// Order of the tokens' rows (`token * chosen + place`) by expert, and its inverse.
    order: Tensor<1, Int>,
    inverse: Tensor<1, Int>,
    /// Experts with the number of their rows, without those of no row.
    parts: Vec<(usize, usize)>,
}

impl Routing {
    fn new(logits: Tensor<2>, chosen: usize) -> Self {
        let [tokens, count] = logits.dims();
        let device = logits.device();
        let logits: Vec<f32> = logits.inner().into_data().try_into_vec().expect("float32");
        let mut experts = Vec::with_capacity(tokens * chosen);
        let mut ranked: Vec<usize> = vec![];
        for logits in logits.chunks(count) {
            ranked.clear();
            ranked.extend(0..count);
            // Of equal ones the first.
            let largest_first =
                |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
            ranked.select_nth_unstable_by(chosen - 1, largest_first);
            ranked[..chosen].sort_by(largest_first);
            experts.extend(&ranked[..chosen]);
        }
        let mut order: Vec<usize> = (0..experts.len()).collect();
        order.sort_by_key(|&row| experts[row]);
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &row)| inverse[row] = at);
        let mut parts: Vec<(usize, usize)> = vec![];
        for &row in &order {
            match parts.last_mut().filter(|(expert, _)| *expert == experts[row]) {
                Some((_, rows)) => *rows += 1,
                None => parts.push((experts[row], 1)),
            }
        }
        Self {
            experts: int(&experts, [tokens, chosen], &device),
            order: int(&order, [order.len()], &device),
            inverse: int(&inverse, [inverse.len()], &device),
            parts,
        }
    }

    fn sort(&self, rows: Tensor<2>) -> Tensor<2> {
        permute_rows(rows, self.order.clone(), self.inverse.clone())
    }

    fn unsort(&self, rows: Tensor<2>) -> Tensor<2> {
        permute_rows(rows, self.inverse.clone(), self.order.clone())
    }
}

fn int<const D: usize>(values: &[usize], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let values: Vec<i32> = values.iter().map(|value| *value as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

/// Calls `run` with each part of the rows. They are halved again and again: the gradient of a part
/// is as large as what it was taken from.
fn each_part(rows: Tensor<2>, parts: &[(usize, usize)], run: &mut impl FnMut(usize, Tensor<2>)) {
    match parts {
        [] => {}
        [(expert, _)] => run(*expert, rows),
        _ => {
            let (first, second) = parts.split_at(parts.len() / 2);
            let [first_rows, second_rows] =
                [first, second].map(|parts| parts.iter().map(|part| part.1).sum::<usize>());
            each_part(rows.clone().narrow(0, 0, first_rows), first, run);
            each_part(rows.narrow(0, first_rows, second_rows), second, run);
        }
    }
}

impl ExpertsSpec {
    /// Returns what is kept of a token for the backward pass: for each chosen expert its rows, what
    /// the expert keeps, and its output. `path` is the mixture's in its layer.
    pub fn kept(&self, path: &str, hidden: usize, costs: &dyn LinearCosts) -> TokenCost {
        let expert = self.mlp.kept(&format!("{path}.experts.0"), hidden, costs);
        let rows = expert.plus_values(hidden).times(self.experts_per_token);
        rows + TokenCost {
            values: 0,
            floats: 2 * self.num_experts + hidden * self.experts_per_token,
        }
    }

    /// Returns what the backward pass of a token has beside the kept.
    pub fn backward(
        &self,
        path: &str,
        hidden: usize,
        costs: &dyn LinearCosts,
        twice: bool,
    ) -> TokenCost {
        let expert = self.mlp.backward(&format!("{path}.experts.0"), costs, twice);
        // The gradients of the outputs, and those of the rows, halved and added.
        expert.plus_values(3 * hidden).times(self.experts_per_token)
    }

    /// Returns what a pass without gradients has: the rows and outputs of each chosen expert.
    pub fn inference(&self, hidden: usize) -> TokenCost {
        let rows = self.mlp.inference().plus_values(3 * hidden).times(self.experts_per_token);
        rows + TokenCost { values: 0, floats: self.experts_per_token * hidden }
    }
}
