//! Tests of what has to panic, several in one.

/// Runs what has to panic, with a message that says this.
pub fn panics<T>(expected: &str, run: impl FnOnce() -> T) {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let payload = panic.err().unwrap_or_else(|| panic!("no panic: {expected}"));
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(text.contains(expected), "`{text}`, not `{expected}`");
}
