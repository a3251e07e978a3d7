//! What master and store are made of, and the calls that make them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bytes per logical block of devices that are made here.
pub const BLOCK_BYTES: u64 = 4096;

/// A method of the target and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// Its parameters.
    pub params: Value,
}

impl Call {
    /// A call.
    pub fn new(method: &'static str, params: Value) -> Self {
        Self { method, params }
    }
}

/// What a device is made of.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// Memory.
    #[default]
    Malloc,
    /// Nothing: writes are lost, reads give anything.
    Null,
    /// A file or block device, through Linux AIO.
    Aio(PathBuf),
    /// A file or block device, through `io_uring`.
    Uring(PathBuf),
    /// The first namespace of an NVMe controller at this PCIe address.
    Pcie(String),
}

impl Source {
    /// The file or block device that it is, if it is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Aio(path) | Self::Uring(path) => Some(path),
            Self::Malloc | Self::Null | Self::Pcie(_) => None,
        }
    }

    /// Whether what it holds outlives the run.
    pub fn is_real(&self) -> bool {
        !matches!(self, Self::Malloc | Self::Null)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malloc => f.write_str("malloc"),
            Self::Null => f.write_str("null"),
            Self::Aio(path) => write!(f, "aio:{}", path.display()),
            Self::Uring(path) => write!(f, "uring:{}", path.display()),
            Self::Pcie(address) => write!(f, "pcie:{address}"),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "malloc" => Ok(Self::Malloc),
            None if text == "null" => Ok(Self::Null),
            Some(("aio", path)) if !path.is_empty() => Ok(Self::Aio(path.into())),
            Some(("uring", path)) if !path.is_empty() => Ok(Self::Uring(path.into())),
            Some(("pcie", address)) if !address.is_empty() => Ok(Self::Pcie(address.to_owned())),
            _ => Err(format!(
                "{text:?} is no device; give malloc, null, aio:PATH, uring:PATH or \
                 pcie:0000:01:00.0"
            )),
        }
    }
}

/// Master and store.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// The device with the live data.
    #[serde(default)]
    pub master: Source,
    /// The device that snapshots go to.
    #[serde(default)]
    pub store: Source,
    /// Size of the store's device; absent: enough for the snapshots of the scenario.
    #[serde(default)]
    pub store_mib: Option<u64>,
    /// Latencies to give to both devices.
    #[serde(default)]
    pub delay_us: Option<Delay>,
    /// Limit of each device, reads and writes together.
    #[serde(default)]
    pub limit_mbytes_per_sec: Option<u64>,
}

/// Latencies of a device, by SPDK's delay bdev.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// Of reads.
    pub read: u64,
    /// Of one read in a hundred.
    pub read_p99: u64,
    /// Of writes.
    pub write: u64,
    /// Of one write in a hundred.
    pub write_p99: u64,
}

/// A device as made: its calls, and the bdev that they make.
pub struct Device {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// The bdev.
    pub bdev: String,
    /// Hugepage memory that it takes.
    pub memory_mib: u64,
}

impl Devices {
    /// Whether one of them is on PCIe.
    pub fn uses_pcie(&self) -> bool {
        [&self.master, &self.store].into_iter().any(|source| matches!(source, Source::Pcie(_)))
    }

    /// Whether what is written to the master is lost, so that filling it is of no use.
    pub fn forgets(&self) -> bool {
        self.master == Source::Null
    }

    /// The calls for a device named `name` of `mib` from `source`.
    pub fn device(&self, source: &Source, name: &str, mib: u64) -> Device {
        let blocks = (mib << 20) / BLOCK_BYTES;
        let base = format!("{name}-base");
        let mut calls = Vec::new();
        let mut bdev = match source {
            Source::Malloc | Source::Null => {
                let method = match source {
                    Source::Malloc => "bdev_malloc_create",
                    _ => "bdev_null_create",
                };
                let params = json!({"name": base, "num_blocks": blocks, "block_size": BLOCK_BYTES});
                calls.push(Call::new(method, params));
                base
            }
            Source::Aio(path) => {
                let params = json!({"name": base, "filename": path, "block_size": BLOCK_BYTES});
                calls.push(Call::new("bdev_aio_create", params));
                split(&mut calls, &base, mib)
            }
            Source::Uring(path) => {
                let params = json!({"name": base, "filename": path, "block_size": BLOCK_BYTES});
                calls.push(Call::new("bdev_uring_create", params));
                split(&mut calls, &base, mib)
            }
            Source::Pcie(address) => {
                let params = json!({"name": base, "trtype": "PCIe", "traddr": address});
                calls.push(Call::new("bdev_nvme_attach_controller", params));
                split(&mut calls, &format!("{base}n1"), mib)
            }
        };
        if let Some(delay) = self.delay_us {
            let params = json!({"base_bdev_name": bdev, "name": name,
                "avg_read_latency": delay.read, "p99_read_latency": delay.read_p99,
                "avg_write_latency": delay.write, "p99_write_latency": delay.write_p99});
            calls.push(Call::new("bdev_delay_create", params));
            name.clone_into(&mut bdev);
        }
        if let Some(limit) = self.limit_mbytes_per_sec {
            let params = json!({"name": bdev, "rw_mbytes_per_sec": limit});
            calls.push(Call::new("bdev_set_qos_limit", params));
        }
        let memory_mib = if *source == Source::Malloc { mib } else { 0 };
        Device { calls, bdev, memory_mib }
    }
}

/// Takes the first `mib` of a device that may be larger, so that all contenders see one size.
fn split(calls: &mut Vec<Call>, base: &str, mib: u64) -> String {
    let params = json!({"base_bdev": base, "split_count": 1, "split_size_mb": mib});
    calls.push(Call::new("bdev_split_create", params));
    format!("{base}p0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_and_written_alike() {
        for text in ["malloc", "null", "aio:/a", "uring:/dev/x", "pcie:0000:01:00.0"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for bad in ["", "ram", "aio", "aio:", "pcie:", "malloc:1"] {
            assert!(bad.parse::<Source>().unwrap_err().contains("give malloc"), "{bad}");
        }
    }

    #[test]
    fn delay_and_limit_are_on_top_of_the_device() {
        let devices = Devices {
            delay_us: Some(Delay { read: 80, read_p99: 160, write: 20, write_p99: 100 }),
            limit_mbytes_per_sec: Some(500),
            ..Devices::default()
        };
        let device = devices.device(&Source::Pcie("0000:01:00.0".into()), "master", 64);
        let methods: Vec<_> = device.calls.iter().map(|call| call.method).collect();
        let expected = [
            "bdev_nvme_attach_controller",
            "bdev_split_create",
            "bdev_delay_create",
            "bdev_set_qos_limit",
        ];
        assert_eq!(methods, expected);
        assert_eq!(device.calls[2].params["base_bdev_name"], "master-basen1p0");
        assert_eq!((device.bdev.as_str(), device.memory_mib), ("master", 0));
    }
}
