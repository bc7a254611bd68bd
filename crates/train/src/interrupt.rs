//! Interruption of a run from outside.

use crate::TrainError;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// A flag that ends a run after the current step, with a checkpoint.
///
/// ```
/// use burn_lora_train::Interrupt;
///
/// let interrupt = Interrupt::default();
/// let elsewhere = interrupt.clone();
/// elsewhere.raise();
/// assert!(interrupt.is_raised());
/// assert_eq!(interrupt.signal(), None); // nobody but us
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
    /// Number of the signal that raised the flag; 0 for none.
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Creates a flag that is raised by Ctrl-C and SIGTERM, and by SIGHUP on Unix; a second signal
    /// ends the process at once, with the status 128 plus the number of the signal. A signal that
    /// the process was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the system does not let a signal be handled.
    pub fn on_ctrl_c() -> Result<Self, TrainError> {
        let interrupt = Self::default();
        let signals = [
            SIGINT,
            SIGTERM,
            #[cfg(unix)]
            signal_hook::consts::SIGHUP,
        ];
        for signal in signals.into_iter().filter(|signal| !is_ignored(*signal)) {
            let Self { raised, signal: number } = interrupt.clone();
            // In this order: at the second signal, the first handler finds the flag that the last
            // one has set.
            flag::register_conditional_shutdown(signal, 128 + signal, raised.clone())
                .and_then(|_| flag::register_usize(signal, number, signal as usize))
                .and_then(|_| flag::register(signal, raised))
                .map_err(|error| {
                    TrainError::setting("interrupt", format!("signal {signal}"), error.to_string())
                })?;
        }
        Ok(interrupt)
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Returns `true` if the flag has been raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Returns the signal that raised the flag, if one did: 2 is Ctrl-C, 15 SIGTERM, 1 SIGHUP. A
    /// program ended by a signal exits with 128 plus this number, as shells and scripts expect.
    pub fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|signal| *signal != 0)
    }
}

/// Returns `true` if the process was started with this signal ignored.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the system only writes the current one, into memory of its size;
    // zeros are a valid action, too.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(not(unix))]
fn is_ignored(_signal: i32) -> bool {
    false
}
