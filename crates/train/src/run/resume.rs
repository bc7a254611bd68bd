//! Resumption from a checkpoint.

use super::Run;
use crate::{
    TrainError,
    checkpoint::{self, Checkpoint, Damage, TrainerState},
    identity::Identity,
    replica::{Replica, Resumed},
};
use burn_lora_llama::CausalLm;
use std::collections::BTreeMap;

impl<M: CausalLm> Run<'_, M> {
    /// Resumes from the newest complete checkpoint, if the run is to be resumed.
    pub(super) fn begin(&mut self, resume: bool) -> Result<(), TrainError> {
        let Some(output) = &self.output else { return Ok(()) };
        output.check(resume)?;
        let mut torn = BTreeMap::new();
        let mut found = checkpoint::list(output.path())?;
        let checkpoint = loop {
            let Some((step, folder)) = found.pop_last() else { break None };
            match checkpoint::read(&folder) {
                Ok(checkpoint) => break Some((step, checkpoint)),
                Err(Damage::Torn(reason)) => _ = torn.insert(folder, reason),
                Err(Damage::Wrong(error)) => return Err(error),
            }
        };
        let Some((step, Checkpoint { place, tensors, folder })) = checkpoint else {
            return match torn.into_iter().next() {
                None => Ok(()),
                Some((folder, reason)) => {
                    let reason = format!(
                        "no checkpoint here is whole, so that there is nothing to go on from \
                         ({reason}): remove them, or write into another folder"
                    );
                    Err(TrainError::format(&folder, reason))
                }
            };
        };
        self.compare(&place.run).map_err(|reason| TrainError::format(&folder, reason))?;
        self.check(step, &place)
            .map_err(|reason| TrainError::format(&folder.join(checkpoint::STATE), reason))?;
        let (model, state) = checkpoint::load(&folder, tensors, self.replica.model.clone())?;
        *self.replica.model = model;
        let resumed = Resumed { step: place.step, state, file: folder.join(checkpoint::TENSORS) };
        let Replica { optimizer, params, device, .. } = &mut self.replica;
        resumed.load(&mut **optimizer, params, device)?;
        for (torn, reason) in torn {
            let aside = checkpoint::set_aside(&torn)?;
            burn_lora_io::warn!(
                "{} is not whole ({reason}): the run goes on from {}, and it is kept as {}",
                torn.display(),
                folder.display(),
                aside.display()
            );
        }
        let (step, steps) = (place.step, self.progress.steps);
        if steps != place.steps
            && self.rate.with_length(self.config.warmup, place.steps).rate(step)
                != self.rate.rate(step)
        {
            burn_lora_io::warn!(
                "the run was to have {} steps, and now has {steps}: the learning rate follows the \
                 course of the new length",
                place.steps
            );
        }
        self.rate.resume(place.plateau.clone());
        self.resumed = Some(resumed);
        self.progress = TrainerState { steps, ..place };
        self.checkpoint = Some(folder);
        Ok(())
    }

    /// Checks that this run can have been at the position of a checkpoint.
    fn check(&self, step: usize, place: &TrainerState) -> Result<(), String> {
        let wrong = |name: &str, found: &dyn std::fmt::Debug, reason: String| {
            Err(format!("`{name}` is {found:?}: {reason}; it was damaged, remove the checkpoint"))
        };
        if place.step != step || step == 0 {
            return wrong("step", &place.step, format!("its folder is that of step {step}"));
        }
        let of_epoch = self.steps_of_epoch;
        let done = place.epoch.checked_mul(of_epoch).and_then(|n| n.checked_add(place.position));
        // At the end of an epoch, a checkpoint can still belong to it.
        if place.position > of_epoch || done != Some(step) {
            let at = (place.epoch, place.position);
            let reason = format!("step {step} is another place, with {of_epoch} steps an epoch");
            return wrong("epoch, position", &at, reason);
        }
        let most = self.train.report().tokens as u128 * (place.epoch as u128 + 1);
        if u128::from(place.tokens) > most || place.tokens < step as u64 {
            return wrong("tokens", &place.tokens, format!("the data have {most} up to there"));
        }
        if let Some((best, loss)) = place.best
            && (best == 0 || best > step || !loss.is_finite())
        {
            return wrong("best", &(best, loss), format!("there is no such step up to {step}"));
        }
        if place.not_better > step {
            let reason = format!("there were no more evaluations than steps, {step}");
            return wrong("not_better", &place.not_better, reason);
        }
        self.rate
            .check(&place.plateau, step)
            .or_else(|reason| wrong("plateau", &place.plateau, reason))
    }

    /// Checks that this run is the one that wrote a checkpoint.
    fn compare(&self, before: &Identity) -> Result<(), String> {
        let now = &self.progress.run;
        if let Some([name, was, is]) = now.difference(before) {
            return Err(format!(
                "`{name}` was {was} and is {is}: a run goes on with what it began with; set it \
                 back, or write into another folder"
            ));
        }
        let Some([name, was, is]) = now.other_weights(before) else { return Ok(()) };
        let reason = format!(
            "the base has other weights than when the run began: `{name}` was {was} and is {is}"
        );
        // These are recomputed at each start, not bit-identically on all devices.
        if now.has_computed_base() {
            burn_lora_io::warn!("{reason}; an adapter's initialisation computes them");
            return Ok(());
        }
        Err(format!("{reason}; give the base of the run, or write into another folder"))
    }
}
