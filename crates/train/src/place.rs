//! Devices by name.

use crate::error::TrainError;
use burn::tensor::Device;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn::tensor::DeviceKind;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn::tensor::DeviceType;
use serde::{Deserialize, Serialize};
use std::{env, fmt, str::FromStr};

/// Backend and index of a device, by name, as in run files and on command lines: `auto`, `cuda`,
/// `cuda:1`, `vulkan`, `wgpu`, `metal`, `cpu`.
///
/// `auto`, the default, is what the variable `BURN_DEVICE` of the environment names, or else the
/// first backend that is compiled in and finds a device: CUDA, Metal, Vulkan, WebGPU, the CPU.
///
/// ```
/// use burn_lora_train::Place;
///
/// let place: Place = "cpu".parse()?;
/// println!("{:?}", place.device()?);
/// assert_eq!("cuda:1".parse::<Place>()?.to_string(), "cuda:1");
/// assert!("gpu".parse::<Place>().is_err());
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    backend: Backend,
    index: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Backend {
    #[default]
    Auto,
    Cuda,
    Vulkan,
    Wgpu,
    Metal,
    Cpu,
}

const NAMES: [(&str, Backend); 6] = [
    ("auto", Backend::Auto),
    ("cuda", Backend::Cuda),
    ("vulkan", Backend::Vulkan),
    ("wgpu", Backend::Wgpu),
    ("metal", Backend::Metal),
    ("cpu", Backend::Cpu),
];

impl Backend {
    fn name(self) -> &'static str {
        NAMES.iter().find(|(_, backend)| *backend == self).map_or("", |(name, _)| name)
    }
}

impl Place {
    /// Returns the device, if its backend is compiled in and finds one.
    ///
    /// # Errors
    /// [`TrainError::Device`] otherwise, with what is missing.
    pub fn device(self) -> Result<Device, TrainError> {
        match self.backend {
            Backend::Auto => auto(),
            _ => self.open().map_err(|reason| TrainError::device(format!("device {self}"), reason)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            None => (text, None),
            Some((name, index)) => match index.parse() {
                Ok(index) => (name, Some(index)),
                Err(_) => {
                    return Err(format!("`{index}` is not the number of a GPU, as in cuda:1"));
                }
            },
        };
        let found = NAMES.iter().find(|(known, _)| *known == name);
        let (_, backend) = found.ok_or("known are auto, cuda, vulkan, wgpu, metal and cpu")?;
        if index.is_some() && matches!(backend, Backend::Auto | Backend::Cpu) {
            return Err(format!("`{name}` has no number"));
        }
        Ok(Self { backend: *backend, index })
    }

    /// Opens the device. Devices are listed first: Burn panics where a driver is missing.
    #[allow(unreachable_patterns)]
    fn open(self) -> Result<Device, String> {
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        let kind = self.index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu);
        match self.backend {
            #[cfg(feature = "cuda")]
            Backend::Cuda => self.find(DeviceType::Cuda, Device::cuda(self.index.unwrap_or(0))),
            #[cfg(feature = "vulkan")]
            Backend::Vulkan => self.find(DeviceType::Vulkan, Device::vulkan(kind)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Backend::Wgpu => self.find(DeviceType::Wgpu, Device::wgpu(kind)),
            #[cfg(feature = "metal")]
            Backend::Metal => self.find(DeviceType::Metal, Device::metal(kind)),
            #[cfg(feature = "cpu")]
            Backend::Cpu => Ok(Device::flex()),
            _ => Err(format!("build with `--features {}`", self.backend.name())),
        }
    }

    /// Returns the device, if it is there.
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan", feature = "metal"))]
    fn find(self, kind: DeviceType, device: Device) -> Result<Device, String> {
        let found = Device::enumerate(kind);
        let name = self.backend.name();
        match self.index {
            _ if found.is_empty() => {
                Err(format!("no GPU and driver for {name} on this machine; `cpu` needs none"))
            }
            Some(index) if !found.contains(&device) => {
                Err(format!("there is no GPU {index} for {name}; they are counted from 0"))
            }
            _ => Ok(device),
        }
    }
}

/// Device that `BURN_DEVICE` names, or else of the first backend that is compiled in and finds one.
fn auto() -> Result<Device, TrainError> {
    if let Some(name) = env::var("BURN_DEVICE").ok().filter(|name| !name.is_empty()) {
        let failed = |reason: String| TrainError::device(format!("BURN_DEVICE={name}"), reason);
        let lower = name.to_lowercase();
        // Burn's name for the backend that is `cpu` here.
        let known = if lower == "flex" { "cpu" } else { &lower };
        let place = Place::parse(known).map_err(failed)?;
        return match place.backend {
            Backend::Auto => Err(failed("name a backend, or unset it".into())),
            _ => place.open().map_err(failed),
        };
    }
    let mut missing = vec![];
    for (backend, compiled) in [
        (Backend::Cuda, cfg!(feature = "cuda")),
        (Backend::Metal, cfg!(feature = "metal")),
        (Backend::Vulkan, cfg!(feature = "vulkan")),
        (Backend::Wgpu, cfg!(feature = "wgpu")),
        (Backend::Cpu, cfg!(feature = "cpu")),
    ] {
        if !compiled {
            continue;
        }
        let place = Place { backend, index: None };
        match place.open() {
            Ok(device) if missing.is_empty() => return Ok(device),
            Ok(device) => {
                let missing = missing.join(", ");
                burn_lora_io::warn!(
                    "no GPU and driver for {missing} on this machine: it computes on {place}"
                );
                return Ok(device);
            }
            Err(_) => missing.push(backend.name()),
        }
    }
    let reason = match missing.as_slice() {
        [] => "no backend is compiled in: build with `--features cpu`".into(),
        names => format!(
            "no GPU and driver for {} on this machine, and nothing else is compiled in: build with \
             `--features cpu`",
            names.join(", ")
        ),
    };
    Err(TrainError::device("device auto", reason))
}

impl FromStr for Place {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Self, TrainError> {
        Self::parse(text).map_err(|reason| TrainError::setting("device", text, reason))
    }
}

impl TryFrom<String> for Place {
    type Error = TrainError;

    fn try_from(text: String) -> Result<Self, TrainError> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.backend.name())?;
        self.index.map_or(Ok(()), |index| write!(out, ":{index}"))
    }
}
