//! Warnings to the user.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Arguments,
    io::{Write, stderr},
    sync::{Mutex, PoisonError},
};

/// Reports a problem that does not stop the program, formatted as by [`format!`].
///
/// It goes to the program's `tracing` subscriber, at level `WARN`. In a program without one it is
/// printed on standard error, each text once: no setup is needed to see it.
///
/// ```
/// # let (_, warnings) = burn_lora_io::collect(|| {
/// let rank = 512;
/// burn_lora_io::warn!("the rank is {rank}: more than 256 seldom helps");
/// # });
/// # assert_eq!(warnings, ["the rank is 512: more than 256 seldom helps"]);
/// ```
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::report(::core::format_args!($($text)*)) };
}

thread_local! {
    static COLLECTED: RefCell<Vec<Vec<String>>> = const { RefCell::new(Vec::new()) };
}

static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Reports a warning; called by [`warn!`](crate::warn).
pub fn report(text: Arguments<'_>) {
    let taken = COLLECTED.with_borrow_mut(|collections| {
        let collection = collections.last_mut()?;
        collection.push(text.to_string());
        Some(())
    });
    if taken.is_some() {
        return;
    }
    if tracing::dispatcher::has_been_set() {
        tracing::warn!("{text}");
        return;
    }
    let text = text.to_string();
    if PRINTED.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
        // A progress bar may be on this line; it is redrawn on the next one.
        let clear = if crate::is_drawn_on(&stderr()) { "\r\x1b[2K" } else { "" };
        let [colour, reset] =
            if crate::is_coloured(&stderr()) { ["\x1b[33m", "\x1b[0m"] } else { ["", ""] };
        // A closed standard error is no reason to fail.
        _ = writeln!(stderr(), "{clear}{colour}warning{reset}: {}", crate::escaped_lines(&text));
    }
}

/// Runs a function, and returns its result and the warnings that it reported on this thread. They
/// go nowhere else: for tests, and for programs that display warnings in their own way.
///
/// ```
/// let (sum, warnings) = burn_lora_io::collect(|| {
///     burn_lora_io::warn!("odd");
///     1 + 1
/// });
/// assert_eq!((sum, warnings), (2, vec!["odd".to_owned()]));
/// ```
pub fn collect<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    /// Ends the collection, also when `run` panics.
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            COLLECTED.with_borrow_mut(Vec::pop);
        }
    }
    COLLECTED.with_borrow_mut(|collections| collections.push(Vec::new()));
    let ends = Ends;
    let result = run();
    let warnings = COLLECTED.with_borrow_mut(|collections| {
        collections.last_mut().map(std::mem::take).unwrap_or_default()
    });
    drop(ends);
    (result, warnings)
}
