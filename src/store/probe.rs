//! What a device holds, before anything is written to it.
//!
//! Signatures are those that blkid looks for, restricted to what is found on whole devices and
//! partitions in practice. A device with a signature is formatted only by force.

use uuid::Uuid;

use super::{
    bytes::{array_at, u16_at, u32_at},
    device::{self, Device},
    error::{Error, Result},
    superblock::{CopyId, Superblock, Unverified, layout},
};

/// What [`probe`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No signature known to presnap.
    Nothing,
    /// A presnap store that can be loaded.
    Store {
        /// Its name.
        name: String,
        /// Its identity.
        uuid: Uuid,
    },
    /// A presnap store that cannot be loaded: damaged, or too new.
    UnloadableStore {
        /// Why not.
        what: String,
    },
    /// Something else.
    Foreign {
        /// Its usual name, such as `ext4`.
        what: &'static str,
    },
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Probe::Nothing => f.write_str("nothing known"),
            Probe::Store { name, uuid } => write!(f, "the presnap store {name:?} ({uuid})"),
            Probe::UnloadableStore { what } => {
                write!(f, "a presnap store that cannot be loaded ({what})")
            }
            Probe::Foreign { what } => write!(f, "a signature of {what}"),
        }
    }
}

/// A signature: name, byte offset, the bytes there.
struct Signature(&'static str, u64, &'static [u8]);

/// Signatures at fixed places, those that exclude others first.
const SIGNATURES: &[Signature] = &[
    Signature("LUKS", 0, b"LUKS\xba\xbe"),
    Signature("LUKS (second header)", 0x4000, b"SKUL\xba\xbe"),
    Signature("an SPDK blobstore", 0, b"SPDKBLOB"),
    Signature("Ceph BlueStore", 0, b"bluestore block device"),
    Signature("XFS", 0, b"XFSB"),
    Signature("btrfs", 0x1_0040, b"_BHRfS_M"),
    Signature("Linux RAID (md 1.1)", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    Signature("Linux RAID (md 1.2)", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    Signature("an LVM2 physical volume", 0, b"LABELONE"),
    Signature("an LVM2 physical volume", 512, b"LABELONE"),
    Signature("an LVM2 physical volume", 1024, b"LABELONE"),
    Signature("an LVM2 physical volume", 1536, b"LABELONE"),
    Signature("NTFS", 3, b"NTFS    "),
    Signature("exFAT", 3, b"EXFAT   "),
    Signature("VFAT", 82, b"FAT32   "),
    Signature("VFAT", 54, b"FAT16   "),
    Signature("VFAT", 54, b"FAT12   "),
    Signature("ISO 9660", 0x8001, b"CD001"),
    Signature("squashfs", 0, b"hsqs"),
    Signature("swap", 4086, b"SWAPSPACE2"),
    Signature("swap", 4086, b"SWAP-SPACE"),
    Signature("swap", 65526, b"SWAPSPACE2"),
    Signature(
        "bcache",
        0x1018,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
    ),
    Signature("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    Signature("a GUID partition table", 512, b"EFI PART"),
    Signature("a GUID partition table", 4096, b"EFI PART"),
];

/// Bytes looked at from the start: covers ZFS label 0 (256 KiB) and all fixed places.
const HEAD_BYTES: u64 = 256 << 10;
/// Bytes looked at from the end: covers ZFS labels 2 and 3, md 0.90 and 1.0, the second GPT.
const TAIL_BYTES: u64 = 512 << 10;

/// Says what the device holds. Reads only.
///
/// # Errors
/// [`Error::Device`], [`Error::Invalid`] for a block size that a store cannot have.
pub fn probe(device: &dyn Device) -> Result<Probe> {
    device::check_geometry(device)?;
    if let Some(found) = probe_store(device)? {
        return Ok(found);
    }
    let size_bytes = device.size_bytes();
    let head = read_part(device, 0, HEAD_BYTES.min(size_bytes))?;
    let tail_start = size_bytes.saturating_sub(TAIL_BYTES);
    let tail = read_part(device, tail_start, size_bytes - tail_start)?;
    let found = probe_fixed(&head)
        .or_else(|| probe_ext(&head))
        .or_else(|| probe_zfs(&head, 0))
        .or_else(|| probe_tail(&tail, tail_start, size_bytes, device.block_bytes()))
        .or_else(|| probe_mbr(&head));
    Ok(found.map_or(Probe::Nothing, |what| Probe::Foreign { what }))
}

fn read_part(device: &dyn Device, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    device::read(device, offset, &mut bytes)?;
    Ok(bytes)
}

fn probe_store(device: &dyn Device) -> Result<Option<Probe>> {
    if device.size_bytes() < layout::HEADER_BYTES {
        return Ok(None);
    }
    match Superblock::find(device) {
        Ok(found) => {
            let Superblock { name, uuid, .. } = found.superblock;
            Ok(Some(Probe::Store { name, uuid }))
        }
        Err(Error::NotAStore { .. }) => Ok(None),
        Err(Error::SuperblocksDamaged { copy_a, copy_b }) => {
            // An unreadable place is no store unless a magic says so.
            let mut ours = false;
            for copy in [CopyId::A, CopyId::B] {
                ours |= Unverified::<Superblock>::read(device, copy)?.has_magic();
            }
            let what = format!("A: {copy_a}; B: {copy_b}");
            Ok(ours.then_some(Probe::UnloadableStore { what }))
        }
        Err(Error::Unsupported { what }) => Ok(Some(Probe::UnloadableStore { what })),
        Err(error) => Err(error),
    }
}

fn holds(bytes: &[u8], offset: usize, signature: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(signature))
}

fn probe_fixed(head: &[u8]) -> Option<&'static str> {
    SIGNATURES
        .iter()
        .find(|Signature(_, offset, bytes)| holds(head, *offset as usize, bytes))
        .map(|Signature(what, ..)| *what)
}

/// ext2, ext3 and ext4 share a magic and differ in features.
fn probe_ext(head: &[u8]) -> Option<&'static str> {
    const SUPER: usize = 1024;
    if head.len() < SUPER + 1024 || u16_at(head, SUPER + 0x38) != 0xef53 {
        return None;
    }
    let has_journal = u32_at(head, SUPER + 0x5c) & 0x4 != 0;
    // extents, 64bit, flex_bg: features that ext4 brought.
    let has_ext4_features = u32_at(head, SUPER + 0x60) & (0x40 | 0x80 | 0x200) != 0;
    Some(match (has_ext4_features, has_journal) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    })
}

/// A ZFS label keeps its uberblocks in its second half; each starts with the magic, in the byte
/// order of the machine that wrote it.
fn probe_zfs(label: &[u8], label_start: usize) -> Option<&'static str> {
    const MAGIC: u64 = 0x00ba_b10c;
    let uberblocks = label.get(label_start + (128 << 10)..label_start + (256 << 10))?;
    uberblocks
        .chunks_exact(1024)
        .any(|block| {
            let word: [u8; 8] = array_at(block, 0);
            u64::from_le_bytes(word) == MAGIC || u64::from_be_bytes(word) == MAGIC
        })
        .then_some("ZFS")
}

fn probe_tail(tail: &[u8], start: u64, size: u64, block_bytes: u32) -> Option<&'static str> {
    const MD_MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    let within = |offset: u64| offset.checked_sub(start).map(|offset| offset as usize);
    let holds_at =
        |offset: u64, bytes: &[u8]| within(offset).is_some_and(|o| holds(tail, o, bytes));
    if size >= 16 << 10 && holds_at((size - (8 << 10)) & !((4 << 10) - 1), &MD_MAGIC) {
        return Some("Linux RAID (md 1.0)");
    }
    // md 0.90: the last 64 KiB that is aligned to 64 KiB; either byte order.
    if size >= 128 << 10 {
        let offset = (size & !((64 << 10) - 1)) - (64 << 10);
        if holds_at(offset, &MD_MAGIC) || holds_at(offset, &[0xa9, 0x2b, 0x4e, 0xfc]) {
            return Some("Linux RAID (md 0.90)");
        }
    }
    if holds_at(size.saturating_sub(u64::from(block_bytes)), b"EFI PART")
        || holds_at(size.saturating_sub(512), b"EFI PART")
    {
        return Some("a GUID partition table (second header)");
    }
    // Labels 2 and 3 lie in the last 512 KiB of the size rounded down to 256 KiB.
    let label_end = size & !((256 << 10) - 1);
    [512u64 << 10, 256 << 10]
        .into_iter()
        .filter_map(|back| within(label_end.checked_sub(back)?))
        .find_map(|label| probe_zfs(tail, label))
}

/// An MBR has a boot signature, like a FAT boot sector; it counts where a partition entry is
/// sane or boot code is there.
fn probe_mbr(head: &[u8]) -> Option<&'static str> {
    if !holds(head, 510, &[0x55, 0xaa]) {
        return None;
    }
    let entries = head[446..510].chunks_exact(16);
    let sane = entries.clone().all(|entry| matches!(entry[0], 0 | 0x80));
    let used = entries.clone().any(|entry| entry[4] != 0 && u32_at(entry, 12) != 0);
    if sane && used {
        return Some("a DOS partition table");
    }
    Some("a boot sector")
}
