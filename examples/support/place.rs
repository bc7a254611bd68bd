//! Where an example computes: `--device`.

use burn_lora::prelude::Device;
use std::{fmt, str::FromStr};

/// A backend, and which of its devices: `cuda`, `cuda:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    backend: Backend,
    index: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
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

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = NAMES.iter().find(|(_, backend)| *backend == self.backend);
        out.write_str(found.map_or("", |(name, _)| name))?;
        self.index.map_or(Ok(()), |index| write!(out, ":{index}"))
    }
}

impl Place {
    /// The device, if its backend is compiled in.
    pub fn device(self) -> Result<Device, String> {
        match self.backend {
            Backend::Auto => Ok(Device::default()),
            #[cfg(feature = "cuda")]
            Backend::Cuda => Ok(Device::cuda(self.index.unwrap_or(0))),
            #[cfg(feature = "vulkan")]
            Backend::Vulkan => Ok(Device::vulkan(self.kind())),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            Backend::Wgpu => Ok(Device::wgpu(self.kind())),
            #[cfg(feature = "metal")]
            Backend::Metal => Ok(Device::metal(self.kind())),
            #[cfg(feature = "cpu")]
            Backend::Cpu => Ok(Device::flex()),
            #[allow(unreachable_patterns)]
            _ => {
                let name = self.to_string();
                let name = name.split(':').next().unwrap_or_default();
                Err(format!("--device {self}: build with `--features {name}`"))
            }
        }
    }

    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
    fn kind(self) -> burn::tensor::DeviceKind {
        use burn::tensor::DeviceKind;
        self.index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
    }
}
