//! Progress of what takes long: loading, downloading, quantizing, merging, writing.
//!
//! The library reports [`Work`] as it is done; nothing is shown unless the program asks for it, by
//! [`show`] for bars on standard error, or by [`observe`] for a display of its own.

mod bar;
mod work;

pub use work::{Counted, Unit, Work, observe};

use bar::Bars;

/// Shows all [`Work`] that takes longer than two seconds on standard error: as a bar on a terminal,
/// one at a time, elsewhere as a line every ten seconds. No effect if the program has a display
/// already.
pub fn show() {
    let bars = Bars::default();
    observe(move |work| bars.update(work));
}
