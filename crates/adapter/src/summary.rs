//! Parameter counts and bytes of a model with adapters.

use crate::{
    layers::Adaptable,
    parameters::{self, is_trained},
};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};
use std::{collections::HashSet, fmt};

/// Parameter counts and bytes of a model with adapters.
///
/// [`line`](Self::line) formats them like PEFT's `print_trainable_parameters`, `Display` as a table.
///
/// ```
/// # use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor}};
/// # use burn_lora_adapter::{Adaptable, AdaptableExt, AdaptedLinear, LoraConfig, adaptable};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: AdaptedLinear }
/// # adaptable!(Model { linear });
/// # let device = Device::default();
/// # let model = Model { linear: LinearConfig::new(96, 64).with_bias(false).init(&device).into() };
/// let model = model.with_adapter(&LoraConfig::new(4, 8).targets(["linear"]))?;
/// let summary = model.summary();
/// assert_eq!(summary.trainable, 4 * (96 + 64));
/// assert_eq!(summary.line(),
///     "trainable params: 640 || all params: 6,784 || trainable%: 9.4340");
/// println!("{summary}");
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of trained parameters.
    pub trainable: usize,
    /// Number of all parameters; a packed weight counts as the dense one that it encodes.
    pub total: usize,
    /// Bytes of the codes of quantized weights.
    pub code_bytes: usize,
    /// Bytes of the scales and tables of quantized weights.
    pub scale_bytes: usize,
    /// Bytes of the dense parameters of the base.
    pub dense_bytes: usize,
    /// Bytes of adapters: trained parameters, and what updates keep beside them.
    pub adapter_bytes: usize,
}

/// Counts the float parameters of a module, a shared one (tied embeddings) once.
#[derive(Default)]
struct Count {
    seen: HashSet<ParamId>,
    values: usize,
    bytes: usize,
    trainable: usize,
}

impl Count {
    fn count(&mut self, id: ParamId, values: usize, size: usize, trained: bool) {
        if self.seen.insert(id) {
            self.values += values;
            self.bytes += values * size;
            self.trainable += if trained { values } else { 0 };
        }
    }
}

impl ModuleVisitor for Count {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = param.lazy_shape().num_elements();
        // Only the shape of an uninitialised parameter is known; it will be float32.
        let size = if param.is_initialized() { param.val().dtype().size() } else { 4 };
        self.count(param.id, values, size, is_trained(param));
    }
}

impl Summary {
    pub(crate) fn of<M: Module + Adaptable>(model: &M) -> Self {
        let mut all = Count::default();
        model.visit(&mut all);
        let mut summary = Self {
            trainable: all.trainable,
            total: all.values,
            dense_bytes: all.bytes,
            ..Self::default()
        };
        let (mut stored, mut kept, mut adapter) =
            (Count::default(), Count::default(), Count::default());
        for (_, layer) in model.layers() {
            if let Some(base) = layer.base().filter(|_| layer.is_quantized()) {
                let bytes = base.weight.bytes();
                summary.code_bytes += bytes.codes;
                summary.scale_bytes += bytes.scales;
                summary.total += base.shape().iter().product::<usize>();
                // Its float tensors are counted above as bytes, and are no parameters.
                base.weight.visit(&mut stored);
            }
            for of_adapter in &layer.adapters().updates {
                of_adapter.visit(&mut adapter);
                let trained = of_adapter.trained_fields();
                for param in parameters::list(&of_adapter.update) {
                    if !trained.contains(&param.field.as_str()) {
                        kept.count(param.id, param.shape.iter().product(), 4, false);
                    }
                }
            }
            for merged in &layer.adapters().merged {
                merged.visit(&mut kept);
                merged.visit(&mut adapter);
            }
        }
        // What is kept for speed is no parameter, but takes memory: it counts as bytes of adapters.
        summary.total -= kept.values + stored.values;
        summary.dense_bytes -= adapter.bytes + stored.bytes;
        summary.adapter_bytes = adapter.bytes;
        summary
    }

    /// Total bytes.
    pub fn bytes(&self) -> usize {
        self.code_bytes + self.scale_bytes + self.dense_bytes + self.adapter_bytes
    }

    /// Trained fraction of the parameters, in percent.
    ///
    /// ```
    /// use burn_lora_adapter::Summary;
    ///
    /// let summary = Summary { trainable: 25, total: 1000, dense_bytes: 4000, ..Summary::default() };
    /// assert_eq!((summary.percent(), summary.bytes()), (2.5, 4000));
    /// ```
    pub fn percent(&self) -> f64 {
        100.0 * self.trainable as f64 / self.total.max(1) as f64
    }

    /// Formats the counts in one line, as PEFT prints them.
    pub fn line(&self) -> String {
        format!(
            "trainable params: {} || all params: {} || trainable%: {:.4}",
            thousands(self.trainable),
            thousands(self.total),
            self.percent()
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.line())?;
        let rows = [
            ("packed codes", self.code_bytes),
            ("scales", self.scale_bytes),
            ("dense", self.dense_bytes),
            ("adapters", self.adapter_bytes),
        ];
        for (name, bytes) in rows.into_iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<14}{:>12}", megabytes(bytes))?;
        }
        write!(f, "  {:<14}{:>12}", "in all", megabytes(self.bytes()))
    }
}

/// Formats bytes in MB (10⁶ bytes).
fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Formats a number with commas.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut parts = vec![];
    if first > 0 {
        parts.push(&digits[..first]);
    }
    let rest = &digits[first..];
    parts.extend((0..rest.len() / 3).map(|i| &rest[3 * i..3 * i + 3]));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands() {
        for (number, text) in [(0, "0"), (12, "12"), (1234, "1,234"), (27_262_976, "27,262,976")] {
            assert_eq!(super::thousands(number), text);
        }
    }
}
