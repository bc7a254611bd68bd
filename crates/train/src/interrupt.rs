//! Stopping a run from outside.

use crate::TrainError;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A flag that ends a run after the step under way, with a checkpoint.
///
/// ```
/// use burn_lora_train::Interrupt;
///
/// let interrupt = Interrupt::default();
/// let elsewhere = interrupt.clone();
/// elsewhere.raise();
/// assert!(interrupt.is_raised());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// One that Ctrl-C and SIGTERM raise; the second time they end the process at once.
    ///
    /// # Errors
    /// When the process has a handler of its own for them.
    pub fn on_ctrl_c() -> Result<Self, TrainError> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        let handler = move || {
            if raised.0.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        };
        ctrlc::set_handler(handler).map_err(|error| {
            TrainError::setting("interrupt", error, "the process has a handler for Ctrl-C")
        })?;
        Ok(interrupt)
    }

    /// Raises it.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has been raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
