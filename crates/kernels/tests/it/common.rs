//! What the tests of this crate share.

#[path = "../../../../tests/common/devices.rs"]
mod devices;
pub use devices::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;
