//! The superblock: what identifies a store and says where its regions are.
//!
//! Two copies with sequence and checksum, far enough apart that a partition table or a boot sector
//! written by mistake hits one of them. The format is docs/on-disk-format.md; the constants of
//! [`layout`] are compared with it by a test.

use uuid::Uuid;

use super::{
    bytes::{array_at, put, u32_at, u64_at},
    device::{self, Device},
    error::{Error, Result},
    slot_map::SLOT_INDEX_MAX,
};
use crate::engine::crc::crc32c;

/// Offsets, sizes and values of the format, as in docs/on-disk-format.md.
pub mod layout {
    /// Magic of a superblock: the name, then what a text-mode copy would change.
    pub const MAGIC: [u8; 8] = *b"PRSNAP\x1a\n";
    /// Version that this presnap writes and the newest that it reads.
    pub const VERSION: u32 = 1;
    /// Bytes set aside for one superblock copy: one block of any device. Those behind the checksum
    /// are zero.
    pub const SUPERBLOCK_BYTES: usize = 4096;
    /// Byte offset of copy A on the device.
    pub const COPY_A_OFFSET: u64 = 0;
    /// Byte offset of copy B on the device.
    pub const COPY_B_OFFSET: u64 = 512 << 10;
    /// Bytes before the catalog region.
    pub const HEADER_BYTES: u64 = 1 << 20;
    /// Least size of the catalog region in bytes.
    pub const CATALOG_BYTES_MIN: u64 = 16 << 20;
    /// Bytes of catalog region per slot: a staged row takes about 450 (see the document).
    pub const CATALOG_BYTES_PER_SLOT: u64 = 512;
    /// Regions start at multiples of this many bytes.
    pub const REGION_ALIGN_BYTES: u64 = 1 << 20;
    /// Longest store name in bytes of UTF-8.
    pub const NAME_BYTES_MAX: usize = 64;
    /// Smallest slot in bytes.
    pub const SLOT_BYTES_MIN: u32 = 64 << 10;
    /// Largest slot in bytes.
    pub const SLOT_BYTES_MAX: u32 = 4 << 20;

    /// Field: magic.
    pub const AT_MAGIC: usize = 0;
    /// Field: version.
    pub const AT_VERSION: usize = 8;
    /// Field: 0 in copy A, 1 in copy B.
    pub const AT_COPY: usize = 12;
    /// Field: compatible features.
    pub const AT_FEATURES_COMPAT: usize = 16;
    /// Field: incompatible features.
    pub const AT_FEATURES_INCOMPAT: usize = 24;
    /// Field: sequence.
    pub const AT_SEQUENCE: usize = 32;
    /// Field: UUID of the store.
    pub const AT_UUID: usize = 40;
    /// Field: time of format.
    pub const AT_CREATED_AT: usize = 56;
    /// Field: logical block size of the device at format.
    pub const AT_BLOCK_BYTES: usize = 64;
    /// Field: slot size.
    pub const AT_SLOT_BYTES: usize = 68;
    /// Field: number of slots.
    pub const AT_SLOT_COUNT: usize = 72;
    /// Field: length of the name.
    pub const AT_NAME_BYTES: usize = 76;
    /// Field: device size at format.
    pub const AT_DEVICE_BYTES: usize = 80;
    /// Field: start of the catalog region.
    pub const AT_CATALOG_OFFSET: usize = 88;
    /// Field: size of the catalog region.
    pub const AT_CATALOG_BYTES: usize = 96;
    /// Field: start of the slot region.
    pub const AT_SLOTS_OFFSET: usize = 104;
    /// Field: name.
    pub const AT_NAME: usize = 112;
    /// Field: checksum of all bytes before it. All fields lie in the first 512 bytes, which any
    /// device writes whole or not at all.
    pub const AT_CHECKSUM: usize = 508;

    /// Incompatible features that this presnap knows.
    pub const FEATURES_INCOMPAT_KNOWN: u64 = 0;
}

#[allow(clippy::wildcard_imports, reason = "the table of the format")]
use layout::*;

/// Bytes read from a device whose meaning nobody has checked yet.
#[derive(Clone, Debug)]
pub struct Unverified<T> {
    bytes: Vec<u8>,
    of: std::marker::PhantomData<T>,
}

/// One copy of the superblock that is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Compatible features: a reader that does not know one may use the store.
    pub features_compat: u64,
    /// Counts changes of the superblock; the copy with the higher one is right.
    pub sequence: u64,
    /// Identity of the store.
    pub uuid: Uuid,
    /// Name of the store, at most [`layout::NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Wall clock at format, milliseconds since the Unix epoch.
    pub created_at_unix_ms: u64,
    /// Logical block size of the device at format, in bytes.
    pub block_bytes: u32,
    /// Size of a slot in bytes, a power of two.
    pub slot_bytes: u32,
    /// Number of slots.
    pub slot_count: u32,
    /// Size of the device at format in bytes.
    pub device_bytes: u64,
    /// Byte offset of the catalog region.
    pub catalog_offset: u64,
    /// Size of the catalog region in bytes.
    pub catalog_bytes: u64,
    /// Byte offset of slot 0.
    pub slots_offset: u64,
}

/// Why a copy of the superblock is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// Other magic: nothing of ours is there.
    #[error("no superblock")]
    Absent,
    /// Right magic, wrong checksum.
    #[error("checksum {stored:#010x} instead of {computed:#010x}")]
    Checksum {
        /// As stored.
        stored: u32,
        /// Over the bytes.
        computed: u32,
    },
    /// A version or incompatible feature that this presnap does not know.
    #[error("{0}")]
    Unknown(String),
    /// Right checksum, impossible content.
    #[error("{0}")]
    Content(String),
    /// The device cannot read it.
    #[error("not readable: {0}")]
    Unreadable(String),
}

/// Which copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyId {
    /// At [`layout::COPY_A_OFFSET`].
    A,
    /// At [`layout::COPY_B_OFFSET`].
    B,
}

/// Both copies.
pub const COPIES: [CopyId; 2] = [CopyId::A, CopyId::B];

impl CopyId {
    /// Byte offset on the device.
    pub fn offset(self) -> u64 {
        match self {
            CopyId::A => COPY_A_OFFSET,
            CopyId::B => COPY_B_OFFSET,
        }
    }

    fn number(self) -> u32 {
        match self {
            CopyId::A => 0,
            CopyId::B => 1,
        }
    }
}

impl Unverified<Superblock> {
    /// Bytes that may be a superblock. Panics unless there are [`layout::SUPERBLOCK_BYTES`].
    pub fn new(bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), SUPERBLOCK_BYTES);
        Unverified { bytes, of: std::marker::PhantomData }
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn read(device: &dyn Device, copy: CopyId) -> Result<Self> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        device::read(device, copy.offset(), &mut bytes)?;
        Ok(Self::new(bytes))
    }

    /// Whether the magic is ours, whatever the rest.
    pub fn has_magic(&self) -> bool {
        self.bytes.starts_with(&MAGIC)
    }

    /// Checks magic, checksum, version, features and content, in this order.
    ///
    /// # Errors
    /// The first [`CopyFault`].
    pub fn verify(self, copy: CopyId) -> Result<Superblock, CopyFault> {
        let bytes = &self.bytes;
        if !self.has_magic() {
            return Err(CopyFault::Absent);
        }
        let stored = u32_at(bytes, AT_CHECKSUM);
        let computed = crc32c(&bytes[..AT_CHECKSUM]);
        if stored != computed {
            return Err(CopyFault::Checksum { stored, computed });
        }
        let version = u32_at(bytes, AT_VERSION);
        if version == 0 || version > VERSION {
            return Err(CopyFault::Unknown(format!("format version {version}")));
        }
        let incompat = u64_at(bytes, AT_FEATURES_INCOMPAT);
        let unknown = incompat & !FEATURES_INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(CopyFault::Unknown(format!("incompatible features {unknown:#x}")));
        }
        if u32_at(bytes, AT_COPY) != copy.number() {
            return Err(CopyFault::Content("the other copy's content".to_owned()));
        }
        let name_bytes = u32_at(bytes, AT_NAME_BYTES) as usize;
        let name = bytes
            .get(AT_NAME..AT_NAME + name_bytes.min(NAME_BYTES_MAX + 1))
            .filter(|name| name.len() <= NAME_BYTES_MAX)
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| CopyFault::Content("a name that is none".to_owned()))?;
        let superblock = Superblock {
            features_compat: u64_at(bytes, AT_FEATURES_COMPAT),
            sequence: u64_at(bytes, AT_SEQUENCE),
            uuid: Uuid::from_bytes(array_at(bytes, AT_UUID)),
            name: name.to_owned(),
            created_at_unix_ms: u64_at(bytes, AT_CREATED_AT),
            block_bytes: u32_at(bytes, AT_BLOCK_BYTES),
            slot_bytes: u32_at(bytes, AT_SLOT_BYTES),
            slot_count: u32_at(bytes, AT_SLOT_COUNT),
            device_bytes: u64_at(bytes, AT_DEVICE_BYTES),
            catalog_offset: u64_at(bytes, AT_CATALOG_OFFSET),
            catalog_bytes: u64_at(bytes, AT_CATALOG_BYTES),
            slots_offset: u64_at(bytes, AT_SLOTS_OFFSET),
        };
        superblock.check_content().map_err(CopyFault::Content)?;
        Ok(superblock)
    }
}

/// A superblock as found on a device.
#[derive(Clone, Debug)]
pub struct Found {
    /// The content of the copy that counts.
    pub superblock: Superblock,
    /// The other copy, where it is damaged or older, and what is wrong with it.
    pub stale: Option<(CopyId, String)>,
}

impl Superblock {
    /// Plans a store: sizes the regions for the device.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a slot size or name that cannot be, [`Error::TooSmall`].
    pub fn plan(
        device: &dyn Device,
        uuid: Uuid,
        name: &str,
        slot_bytes: u32,
        created_at_unix_ms: u64,
    ) -> Result<Self> {
        device::check_geometry(device)?;
        if !slot_bytes.is_power_of_two() || !(SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&slot_bytes)
        {
            return Err(Error::Invalid {
                what: format!(
                    "slot size {slot_bytes}: give a power of two from {SLOT_BYTES_MIN} to \
                     {SLOT_BYTES_MAX} bytes"
                ),
            });
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::Invalid {
                what: format!(
                    "store name of {} bytes: give 1 to {NAME_BYTES_MAX} bytes",
                    name.len()
                ),
            });
        }
        let device_bytes = device.size_bytes();
        let slot = u64::from(slot_bytes);
        let align = REGION_ALIGN_BYTES.max(slot);
        let least_bytes = (HEADER_BYTES + CATALOG_BYTES_MIN).next_multiple_of(align) + slot;
        if device_bytes < least_bytes {
            return Err(Error::TooSmall { size_bytes: device_bytes, slot_bytes, least_bytes });
        }
        let slots_wanted = (device_bytes - HEADER_BYTES) / (slot + CATALOG_BYTES_PER_SLOT);
        let catalog_bytes = CATALOG_BYTES_MIN
            .max((slots_wanted * CATALOG_BYTES_PER_SLOT).next_multiple_of(REGION_ALIGN_BYTES));
        let slots_offset = (HEADER_BYTES + catalog_bytes).next_multiple_of(align);
        let slot_count =
            (device_bytes.saturating_sub(slots_offset) / slot).min(u64::from(SLOT_INDEX_MAX) + 1);
        let superblock = Superblock {
            features_compat: 0,
            sequence: 1,
            uuid,
            name: name.to_owned(),
            created_at_unix_ms,
            block_bytes: device.block_bytes(),
            slot_bytes,
            slot_count: slot_count as u32,
            device_bytes,
            catalog_offset: HEADER_BYTES,
            catalog_bytes,
            slots_offset,
        };
        superblock.check_content().expect("a plan that passes its own check");
        Ok(superblock)
    }

    /// Byte offset of slot number `slot` on the device. Panics on a slot that is not there: the
    /// bytes behind the last slot are not ours.
    pub fn slot_offset(&self, slot: crate::engine::records::SlotIndex) -> u64 {
        assert!(slot.0 < self.slot_count, "slot {} of {}", slot.0, self.slot_count);
        self.slots_offset + u64::from(slot.0) * u64::from(self.slot_bytes)
    }

    fn check_content(&self) -> Result<(), String> {
        let slots_bytes = u64::from(self.slot_count) * u64::from(self.slot_bytes);
        let rules = [
            (self.block_bytes.is_power_of_two(), "block size"),
            (self.slot_bytes.is_power_of_two(), "slot size"),
            (self.slot_bytes >= SLOT_BYTES_MIN && self.slot_bytes <= SLOT_BYTES_MAX, "slot size"),
            (self.slot_count > 0 && self.slot_count - 1 <= SLOT_INDEX_MAX, "slot count"),
            (!self.name.is_empty(), "name"),
            (self.catalog_offset >= HEADER_BYTES, "catalog offset"),
            (self.catalog_bytes >= CATALOG_BYTES_MIN, "catalog size"),
            (
                self.catalog_offset
                    .checked_add(self.catalog_bytes)
                    .is_some_and(|end| end <= self.slots_offset),
                "slot region in the catalog region",
            ),
            (
                self.slots_offset
                    .checked_add(slots_bytes)
                    .is_some_and(|end| end <= self.device_bytes),
                "slots behind the device's end",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(format!("impossible {what}")),
        }
    }

    /// The bytes of one copy.
    pub fn to_bytes(&self, copy: CopyId) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        put(&mut bytes, AT_MAGIC, &MAGIC);
        put(&mut bytes, AT_VERSION, &VERSION.to_le_bytes());
        put(&mut bytes, AT_COPY, &copy.number().to_le_bytes());
        put(&mut bytes, AT_FEATURES_COMPAT, &self.features_compat.to_le_bytes());
        put(&mut bytes, AT_FEATURES_INCOMPAT, &0u64.to_le_bytes());
        put(&mut bytes, AT_SEQUENCE, &self.sequence.to_le_bytes());
        put(&mut bytes, AT_UUID, self.uuid.as_bytes());
        put(&mut bytes, AT_CREATED_AT, &self.created_at_unix_ms.to_le_bytes());
        put(&mut bytes, AT_BLOCK_BYTES, &self.block_bytes.to_le_bytes());
        put(&mut bytes, AT_SLOT_BYTES, &self.slot_bytes.to_le_bytes());
        put(&mut bytes, AT_SLOT_COUNT, &self.slot_count.to_le_bytes());
        put(&mut bytes, AT_NAME_BYTES, &(self.name.len() as u32).to_le_bytes());
        put(&mut bytes, AT_DEVICE_BYTES, &self.device_bytes.to_le_bytes());
        put(&mut bytes, AT_CATALOG_OFFSET, &self.catalog_offset.to_le_bytes());
        put(&mut bytes, AT_CATALOG_BYTES, &self.catalog_bytes.to_le_bytes());
        put(&mut bytes, AT_SLOTS_OFFSET, &self.slots_offset.to_le_bytes());
        put(&mut bytes, AT_NAME, self.name.as_bytes());
        let checksum = crc32c(&bytes[..AT_CHECKSUM]);
        put(&mut bytes, AT_CHECKSUM, &checksum.to_le_bytes());
        bytes
    }

    /// Writes one copy; durable after the next flush.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn write(&self, device: &dyn Device, copy: CopyId) -> Result<()> {
        device::write(device, copy.offset(), &self.to_bytes(copy))
    }

    /// Writes both copies one after the other, each durable before the next.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn write_both(&self, device: &dyn Device) -> Result<()> {
        for copy in [CopyId::A, CopyId::B] {
            self.write(device, copy)?;
            device::flush(device)?;
        }
        Ok(())
    }

    /// Reads both copies and says which counts. Writes nothing.
    ///
    /// # Errors
    /// [`Error::NotAStore`] where neither has the magic, [`Error::SuperblocksDamaged`] where none
    /// is in order, [`Error::Unsupported`] where either was written by a newer presnap.
    pub fn find(device: &dyn Device) -> Result<Found> {
        device::check_geometry(device)?;
        if device.size_bytes() < HEADER_BYTES {
            return Err(Error::NotAStore { found: "less than a header's room".to_owned() });
        }
        let [copy_a, copy_b] = [CopyId::A, CopyId::B].map(|copy| {
            Unverified::<Superblock>::read(device, copy)
                .map_err(|error| CopyFault::Unreadable(super::chain(&error)))
                .and_then(|bytes| bytes.verify(copy))
        });
        match (copy_a, copy_b) {
            (Err(CopyFault::Unknown(what)), _) | (_, Err(CopyFault::Unknown(what))) => {
                Err(Error::Unsupported { what })
            }
            (Ok(a), Ok(b)) if a == b => Ok(Found { superblock: a, stale: None }),
            (Ok(a), Ok(b)) if a.uuid != b.uuid && a.sequence == b.sequence => {
                // A format in progress writes A first, after wiping both: this cannot be ours.
                Err(Error::SuperblocksDamaged {
                    copy_a: format!("store {}", a.uuid),
                    copy_b: format!("store {}", b.uuid),
                })
            }
            (Ok(a), Ok(b)) if b.sequence > a.sequence => {
                Ok(Found { superblock: b, stale: Some((CopyId::A, "older".to_owned())) })
            }
            (Ok(a), Ok(_)) => {
                Ok(Found { superblock: a, stale: Some((CopyId::B, "older".to_owned())) })
            }
            (Ok(a), Err(fault)) => {
                Ok(Found { superblock: a, stale: Some((CopyId::B, fault.to_string())) })
            }
            (Err(fault), Ok(b)) => {
                Ok(Found { superblock: b, stale: Some((CopyId::A, fault.to_string())) })
            }
            (Err(CopyFault::Absent), Err(CopyFault::Absent)) => {
                Err(Error::NotAStore { found: "no superblock".to_owned() })
            }
            (Err(a), Err(b)) => {
                Err(Error::SuperblocksDamaged { copy_a: a.to_string(), copy_b: b.to_string() })
            }
        }
    }

    /// Like [`Superblock::find`], then writes the copy that does not count anew. Says what it
    /// repaired.
    ///
    /// # Errors
    /// As [`Superblock::find`]; [`Error::Shrunk`]; [`Error::Device`] where the repair fails.
    pub fn load(device: &dyn Device) -> Result<(Self, Option<String>)> {
        let Found { superblock, stale } = Self::find(device)?;
        if device.size_bytes() < superblock.device_bytes {
            return Err(Error::Shrunk {
                size_bytes: device.size_bytes(),
                expected_bytes: superblock.device_bytes,
            });
        }
        if device.block_bytes() > superblock.block_bytes.max(device::BLOCK_BYTES_MAX) {
            return Err(Error::Invalid { what: "the device's blocks grew".to_owned() });
        }
        let Some((copy, fault)) = stale else { return Ok((superblock, None)) };
        superblock.write(device, copy)?;
        device::flush(device)?;
        Ok((superblock, Some(format!("superblock copy {copy:?} ({fault})"))))
    }

    /// Makes both copies disappear, durably: the device is no store afterwards.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wipe(device: &dyn Device) -> Result<()> {
        for copy in [CopyId::A, CopyId::B] {
            device::write(device, copy.offset(), &[0; SUPERBLOCK_BYTES])?;
        }
        device::flush(device)
    }
}
