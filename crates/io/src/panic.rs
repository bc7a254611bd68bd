//! Panics of libraries on malformed files, as errors.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static QUIET: Cell<usize> = const { Cell::new(0) };
}

static HOOK: Once = Once::new();

/// Runs a library function that may panic on the content of a file. The error is the text of the
/// panic, which is not printed; other panics are printed as before.
///
/// ```
/// assert_eq!(burn_lora_io::caught(|| 1 + 1), Ok(2));
/// assert_eq!(burn_lora_io::caught(|| panic!("wrong bytes")), Err::<(), _>("wrong bytes".to_owned()));
/// ```
///
/// # Errors
/// The text of a panic on this thread.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if QUIET.get() == 0 {
                before(panic);
            }
        }));
    });
    QUIET.set(QUIET.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(QUIET.get() - 1);
    result.map_err(|payload| panic_text(&*payload))
}

/// Returns the text of a caught panic.
///
/// ```
/// let payload = std::panic::catch_unwind(|| panic!("wrong bytes")).unwrap_err();
/// assert_eq!(burn_lora_io::panic_text(&*payload), "wrong bytes");
/// ```
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".into())
}
