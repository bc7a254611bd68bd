//! Selection of the adapters of a forward pass.

use std::sync::Arc;

/// Name of the base without an adapter in a selection by rows, as in PEFT.
///
/// ```
/// use burn_lora_adapter::{BASE, Selection};
///
/// assert_eq!(Selection::rows(["style", BASE]).names(), ["style"]);
/// ```
pub const BASE: &str = "__base__";

/// Selection of the adapters of a forward pass: for the whole batch, or for each of its rows.
///
/// ```
/// use burn_lora_adapter::{BASE, Selection};
///
/// let both = Selection::adapters(["style", "facts"]); // their updates add up
/// let off = Selection::base();
/// let mixed = Selection::rows(["style", BASE, "facts"]); // a batch of three
/// assert_eq!(mixed.names(), ["style", "facts"]);
/// # assert!(off.names().is_empty());
/// # assert_eq!(both.names().len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These adapters for every row; an empty list is the base.
    Adapters(Arc<[String]>),
    /// One adapter for each row of the batch, or [`BASE`].
    Rows(Arc<[String]>),
}

impl Selection {
    /// Selects the base without adapters.
    pub fn base() -> Self {
        Self::Adapters(Arc::new([]))
    }

    /// Selects adapters whose updates add up.
    pub fn adapters(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::Adapters(names.into_iter().map(|name| name.as_ref().to_owned()).collect())
    }

    /// Selects one adapter for each row of the batch (the first dimension), [`BASE`] for none.
    pub fn rows(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::Rows(names.into_iter().map(|name| name.as_ref().to_owned()).collect())
    }

    /// Names of the selected adapters, each once, in order.
    pub fn names(&self) -> Vec<&str> {
        let (Self::Adapters(names) | Self::Rows(names)) = self;
        let mut unique = vec![];
        for name in names.iter().map(String::as_str) {
            if name != BASE && !unique.contains(&name) {
                unique.push(name);
            }
        }
        unique
    }

    /// Returns the selection without an adapter: its rows run with the base.
    pub(crate) fn without(&self, name: &str) -> Self {
        match self {
            Self::Adapters(names) => Self::adapters(names.iter().filter(|other| *other != name)),
            Self::Rows(rows) => {
                Self::rows(rows.iter().map(|row| if row == name { BASE } else { row }))
            }
        }
    }
}

impl Default for Selection {
    fn default() -> Self {
        Self::base()
    }
}
