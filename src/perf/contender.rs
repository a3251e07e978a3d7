//! Who is compared: what stands between fio and the two devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Policies of `bdev_presnap_create`.
const POLICIES: [&str; 6] = ["off", "idle", "deadline", "rate", "likely", "lstm"];
/// Sizes of clusters that SPDK's lvol store takes.
const CLUSTER_MIB_MAX: u32 = 64;

/// What stands between fio and the two devices.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Contender {
    /// The master device itself, never snapshotted.
    Bare,
    /// SPDK's passthru bdev on the master.
    Passthru,
    /// A presnap volume with this policy.
    Presnap {
        /// Its policy.
        policy: String,
    },
    /// SPDK's logical volume on the master.
    Lvol {
        /// Size of a cluster.
        cluster_mib: u32,
        /// Whether clusters are allocated at the first write.
        thin: bool,
        /// Whether the snapshot is copied out to the store's device, to be independent as
        /// presnap's is.
        copy: bool,
    },
}

impl Contender {
    /// Whether it is one of SPDK's bdevs without snapshots.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Bare | Self::Passthru)
    }

    /// Whether it is a presnap volume.
    pub fn is_presnap(&self) -> bool {
        matches!(self, Self::Presnap { .. })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => f.write_str("bare"),
            Self::Passthru => f.write_str("passthru"),
            Self::Presnap { policy } => write!(f, "presnap:{policy}"),
            Self::Lvol { cluster_mib, thin, copy } => {
                let thin = if *thin { ":thin" } else { "" };
                let copy = if *copy { ":copy" } else { "" };
                write!(f, "lvol:{cluster_mib}MiB{thin}{copy}")
            }
        }
    }
}

impl From<Contender> for String {
    fn from(contender: Contender) -> Self {
        contender.to_string()
    }
}

impl TryFrom<String> for Contender {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "{text:?} is no contender; known are bare, passthru, presnap:POLICY ({}) and \
                 lvol:NMiB with :thin and :copy",
                POLICIES.join(", ")
            )
        };
        let mut parts = text.split(':');
        match (parts.next(), parts.next()) {
            (Some("bare"), None) => Ok(Self::Bare),
            (Some("passthru"), None) => Ok(Self::Passthru),
            (Some("presnap"), Some(policy)) if POLICIES.contains(&policy) => {
                let policy = policy.to_owned();
                if parts.next().is_none() { Ok(Self::Presnap { policy }) } else { Err(unknown()) }
            }
            (Some("lvol"), Some(cluster)) => {
                let cluster_mib = cluster.strip_suffix("MiB").and_then(|n| n.parse().ok());
                let cluster_mib = cluster_mib
                    .filter(|n: &u32| n.is_power_of_two() && *n <= CLUSTER_MIB_MAX)
                    .ok_or_else(unknown)?;
                let (mut thin, mut copy) = (false, false);
                for part in parts {
                    match part {
                        "thin" if !thin && !copy => thin = true,
                        "copy" if !copy => copy = true,
                        _ => return Err(unknown()),
                    }
                }
                Ok(Self::Lvol { cluster_mib, thin, copy })
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in [
            "bare",
            "passthru",
            "presnap:off",
            "presnap:lstm",
            "lvol:1MiB",
            "lvol:4MiB:thin",
            "lvol:4MiB:copy",
            "lvol:4MiB:thin:copy",
        ] {
            assert_eq!(name.parse::<Contender>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "bar",
            "bare:1",
            "presnap",
            "presnap:x",
            "presnap:off:1",
            "lvol",
            "lvol:1",
            "lvol:3MiB",
            "lvol:128MiB",
            "lvol:1MiB:copy:thin",
            "lvol:1MiB:thin:thin",
        ] {
            let error = bad.parse::<Contender>().unwrap_err();
            assert!(error.contains("known are"), "{error}");
        }
    }
}
