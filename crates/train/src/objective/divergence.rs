//! Divergences between the predictions of two models.

use burn::tensor::{DType, Tensor};
use burn_lora_kernels::Gemm;

/// Divergence of each row of two distributions, and its gradient.
pub(super) struct Divergence {
    /// `[rows, 1]`
    pub loss: Tensor<2>,
    /// `q · ∂loss/∂q` up to a multiple of `q`, where `q` are the student's probabilities, `[rows, outcomes]`.
    pub pull: Tensor<2>,
}

/// Generalized Jensen-Shannon divergence (arXiv:2306.13649) of the student's distribution `q` and the teacher's `p`, both
/// given as log-probabilities. With `m = (1 - beta)·q + beta·p` it is
/// `beta · KL(p || m) + (1 - beta) · KL(q || m)`; with a beta of 0 the forward divergence `KL(p || q)`, and with 1 the reverse
/// one, `KL(q || p)`.
///
/// # Shapes
/// - student, teacher: `[rows, outcomes]` in float32
pub(super) fn divergence(student: Tensor<2>, teacher: Tensor<2>, beta: f64) -> Divergence {
    if beta == 0.0 {
        let p = teacher.clone().exp();
        return Divergence { loss: row_sums(p.clone() * (teacher - student)), pull: -p };
    }
    let q = student.clone().exp();
    if beta == 1.0 {
        let pull = q * (student - teacher);
        return Divergence { loss: row_sums(pull.clone()), pull };
    }
    // The logarithm of the mixture, which does not underflow.
    let (a, b) = (student.clone() + (1.0 - beta).ln(), teacher.clone() + beta.ln());
    let gap = (a.clone() - b.clone()).abs();
    let mixture = a.max_pair(b) + gap.neg().exp().log1p();
    let of_teacher = teacher.clone().exp() * (teacher - mixture.clone()) * beta;
    let pull = q * (student - mixture) * (1.0 - beta);
    Divergence { loss: row_sums(of_teacher + pull.clone()), pull }
}

/// Sums of the rows, `[rows, 1]`, in the same order each time.
pub(super) fn row_sums(values: Tensor<2>) -> Tensor<2> {
    let ones = Tensor::<2>::ones([values.dims()[1], 1], (&values.device(), DType::F32));
    Gemm::new().run(values, ones)
}

/// Gradient of a divergence of whole distributions at the logits whose softmax is `q`.
pub(super) fn at_logits(pull: Tensor<2>, student: Tensor<2>) -> Tensor<2> {
    let total = row_sums(pull.clone());
    pull - student.exp() * total
}
