//! NEFTune's noise on the embeddings (arXiv:2310.05914), with transformers' formula: uniform in
//! ±alpha / √(length · hidden), where the length is that of the padded batch.

use crate::common::*;
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use burn_lora_adapter::{AdaptableExt, LoraConfig, adaptable};
use burn_lora_llama::{Context, Llama, Segments};
use burn_lora_train::{
    BatchConfig, CausalLm, Dataset, Every, Recompute, TrainConfig, Trainer, data::Sample, evaluate,
};
use std::sync::Mutex;

/// A Llama that notes what its embedding gives and what its first layer gets.
#[derive(Module, Debug)]
struct Probe {
    llama: Llama,
}
adaptable!(Probe { llama });

/// What a forward pass did to its embeddings.
struct Seen {
    length: usize,
    embedded: Vec<f32>,
    given: Vec<f32>,
}

static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());

fn values(hidden: Tensor<3>) -> Vec<f32> {
    let hidden = if hidden.is_autodiff() { hidden.inner() } else { hidden };
    hidden.into_data().iter::<f32>().collect()
}

impl CausalLm for Probe {
    type Context = Context;

    fn context(&self, segments: &Segments) -> Context {
        self.llama.context(segments)
    }

    fn embed(&self, tokens: Tensor<2, Int>, context: &Context) -> Tensor<3> {
        let hidden = self.llama.embed(tokens, context);
        let (length, embedded) = (hidden.dims()[1], values(hidden.clone()));
        SEEN.lock().unwrap().push(Seen { length, embedded, given: vec![] });
        hidden
    }

    fn depth(&self) -> usize {
        CausalLm::depth(&self.llama)
    }

    fn layer(&self, index: usize, hidden: Tensor<3>, context: &Context) -> Tensor<3> {
        if index == 0 {
            SEEN.lock().unwrap().last_mut().unwrap().given = values(hidden.clone());
        }
        CausalLm::layer(&self.llama, index, hidden, context)
    }

    fn head(&self, hidden: Tensor<2>, context: &Context) -> Tensor<2> {
        CausalLm::head(&self.llama, hidden, context)
    }

    fn vocabulary(&self) -> usize {
        CausalLm::vocabulary(&self.llama)
    }

    fn device(&self) -> Device {
        self.llama.device()
    }
}

fn samples(lengths: impl IntoIterator<Item = u32>) -> Dataset {
    let samples = lengths.into_iter().enumerate().map(|(number, length)| {
        let ids: Vec<u32> =
            (0..length).map(|at| (number as u32 * 31 + at * 17) % 125 + 1).collect();
        Sample { loss_mask: vec![true; ids.len()], ids }
    });
    Dataset::from_samples(samples).unwrap()
}

#[test]
fn noise_is_uniform_within_its_bound_and_in_training_only() {
    let _alone = the_generator();
    let llama = loader(&golden("gqa")).load(&device()).unwrap();
    let hidden = llama.config.hidden_size;
    let lora = LoraConfig::new(4, 8).all_linear();
    let mut model = Probe { llama }.with_adapter(&lora).unwrap();
    let alpha = 5.0;
    // Batches of two have four lengths; what is evaluated has another one.
    let (train, valid) = (samples((0..8).map(|number| 6 + 3 * number)), samples([5, 5]));
    let batches = BatchConfig { size: 2, shuffle: false, ..BatchConfig::default() };
    let config = TrainConfig::new(1e-4)
        .batches(batches)
        .neftune(alpha)
        .recompute(Recompute::None)
        .evaluate(Every::Steps(2))
        .epochs(1);
    SEEN.lock().unwrap().clear();
    Trainer::new(config).fit(&mut model, &train, Some(&valid)).unwrap();
    let fitted = std::mem::take(&mut *SEEN.lock().unwrap());
    evaluate(&model, &valid, &BatchConfig::default()).unwrap();
    let evaluated = std::mem::take(&mut *SEEN.lock().unwrap());

    let (training, evaluations): (Vec<_>, Vec<_>) =
        fitted.into_iter().partition(|seen| seen.length > 5);
    assert!(!evaluations.is_empty() && !evaluated.is_empty());
    for seen in evaluations.iter().chain(&evaluated) {
        assert!(seen.given == seen.embedded, "an evaluation has noise");
    }

    let lengths: Vec<usize> = training.iter().map(|seen| seen.length).collect();
    assert_eq!(lengths, [9, 15, 21, 27]);
    let mut first = vec![];
    for seen in &training {
        let bound = alpha / ((seen.length * hidden) as f32).sqrt();
        let noise: Vec<f32> = seen
            .given
            .iter()
            .zip(&seen.embedded)
            .map(|(given, own)| (given - own) / bound)
            .collect();
        let count = noise.len() as f32;
        let most = noise.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!(
            (0.98..=1.0001).contains(&most),
            "length {}: up to {most} of the bound",
            seen.length
        );
        // A uniform variable in ±1 has mean 0 and mean square 1/3; the limits are four deviations.
        let mean = noise.iter().sum::<f32>() / count;
        assert!(mean.abs() < 4.0 * (1.0 / 3.0 / count).sqrt(), "length {}: {mean}", seen.length);
        let square = noise.iter().map(|value| value * value).sum::<f32>() / count;
        let limit = 4.0 * (4.0 / 45.0 / count).sqrt();
        assert!((square - 1.0 / 3.0).abs() < limit, "length {}: {square}", seen.length);
        first.push(noise[0]);
    }
    first.dedup();
    assert_eq!(first.len(), 4, "each step draws noise of its own");
}
