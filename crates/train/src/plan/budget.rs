//! Memory that a run may take, as a setting.

use super::device_memory;
use crate::TrainError;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, str::FromStr};

/// Memory that a training step may take: layers whose activations fit into it are not run again.
///
/// ```
/// use burn_lora_train::plan::MemoryBudget;
///
/// assert_eq!("24 GiB".parse(), Ok(MemoryBudget::Bytes(24 << 30)));
/// assert_eq!("device".parse(), Ok(MemoryBudget::Device));
/// assert_eq!("1.5GB".parse::<MemoryBudget>().unwrap().to_string(), "1.40 GiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "String")]
pub enum MemoryBudget {
    /// A number of bytes; `24 GiB` or `24 GB` in a file.
    Bytes(u64),
    /// The memory of the device; `device` in a file.
    Device,
}

impl MemoryBudget {
    /// Returns the bytes.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the memory of the device is not known.
    pub fn bytes(self, device: &Device) -> Result<u64, TrainError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Device => device_memory(device).ok_or_else(|| {
                let reason = format!("the memory of {device:?} is not known: say how many GiB");
                TrainError::setting("memory_budget", self, reason)
            }),
        }
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "device" {
            return Ok(Self::Device);
        }
        let wrong = || format!("`{text}` is neither a size such as `24 GiB` nor `device`");
        let (number, unit) = match (text.strip_suffix("GiB"), text.strip_suffix("GB")) {
            (Some(number), _) => (number, (1u64 << 30) as f64),
            (None, Some(number)) => (number, 1e9),
            (None, None) => return Err(wrong()),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * unit;
        if (1.0..1e18).contains(&bytes) { Ok(Self::Bytes(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: u64 = 1 << 30;
        match self {
            Self::Bytes(bytes) if bytes.is_multiple_of(GIB) => write!(f, "{} GiB", bytes / GIB),
            Self::Bytes(bytes) => write!(f, "{:.2} GiB", *bytes as f64 / GIB as f64),
            Self::Device => f.write_str("device"),
        }
    }
}

impl TryFrom<Value> for MemoryBudget {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value.as_str() {
            Some(text) => text.parse(),
            None => Err(format!("`{value}` has no unit: it is as in `24 GiB`, or `device`")),
        }
    }
}

impl From<MemoryBudget> for String {
    fn from(budget: MemoryBudget) -> Self {
        match budget {
            // Exact, so that a written file is the same when it is read.
            MemoryBudget::Bytes(bytes) => format!("{} GiB", bytes as f64 / (1u64 << 30) as f64),
            MemoryBudget::Device => budget.to_string(),
        }
    }
}
