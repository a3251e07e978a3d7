//! The catalog region: redb's file on a part of the device.
//!
//! redb wants a file with a length of its own. The region begins with two blocks that hold the
//! length (A and B, by turns, with sequence and checksum), the file's bytes follow. What redb
//! relies on (its 4.6.0 sources, `page_manager.rs` and `header.rs`):
//! - the length is exactly that of a layout: any multiple of its 4 KiB pages;
//! - after a crash it may be longer than the layout, then redb takes over the longer one, but
//!   never shorter: redb flushes after growing before it uses the new pages, and shrinks only once
//!   the smaller layout is durable, so the last length or a former one is always right;
//! - new bytes read as zeros, or are written before they are read;
//! - one failed call makes its `Database` fail for good: the catalog then opens it anew.
//!
//! Runs on the catalog's thread only.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::StorageBackend;

use super::{
    bytes::{put, u32_at, u64_at},
    device::{self, SharedDevice},
    error::{Error, Result},
};
use crate::engine::crc::crc32c;

/// Offsets and sizes of the format, as in docs/on-disk-format.md.
pub mod layout {
    /// Magic of a length record.
    pub const LENGTH_MAGIC: [u8; 8] = *b"PRSNLEN\n";
    /// Byte offsets of the two length records within the region.
    pub const LENGTH_OFFSETS: [u64; 2] = [0, 4096];
    /// Bytes of a length record that have a meaning: within one block of any device.
    pub const LENGTH_BYTES: usize = 32;
    const _: () = assert!(LENGTH_BYTES == AT_CHECKSUM + 4);
    /// Byte offset of the file within the region.
    pub const FILE_OFFSET: u64 = 8192;
    /// redb's page size in bytes.
    pub const PAGE_BYTES: u64 = 4096;

    /// Field: magic.
    pub const AT_MAGIC: usize = 0;
    /// Field: sequence.
    pub const AT_SEQUENCE: usize = 8;
    /// Field: length of the file in bytes.
    pub const AT_LENGTH: usize = 16;
    /// Field: checksum of all bytes before it.
    pub const AT_CHECKSUM: usize = 28;
}

#[allow(clippy::wildcard_imports, reason = "the table of the format")]
use layout::*;

#[derive(Clone, Copy, Debug)]
struct Length {
    sequence: u64,
    bytes: u64,
    /// The record was written after the last flush.
    unflushed: bool,
}

/// The region and the file in it. Shared by the catalog and the backend that redb owns.
pub(super) struct Region {
    device: SharedDevice,
    offset: u64,
    size_bytes: u64,
    length: Mutex<Length>,
    /// redb asked for more than the region has, since the last [`Region::take_overflow`].
    overflow: AtomicBool,
    /// Nothing may reach the device any more.
    cut_off: AtomicBool,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("offset", &self.offset)
            .field("size_bytes", &self.size_bytes)
            .field("length", &*self.lock())
            .finish_non_exhaustive()
    }
}

impl Region {
    fn new(device: SharedDevice, offset: u64, size_bytes: u64, length: Length) -> Arc<Self> {
        assert!(size_bytes > FILE_OFFSET + PAGE_BYTES && size_bytes.is_multiple_of(PAGE_BYTES));
        let length = Mutex::new(length);
        Arc::new(Region {
            device,
            offset,
            size_bytes,
            length,
            overflow: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        })
    }

    /// An empty file in a fresh region; durable on return.
    pub(super) fn create(device: SharedDevice, offset: u64, size_bytes: u64) -> Result<Arc<Self>> {
        let length = Length { sequence: 0, bytes: 0, unflushed: false };
        let region = Self::new(device, offset, size_bytes, length);
        // Whatever an earlier store left must not be taken for a newer record.
        let zeros = vec![0; FILE_OFFSET as usize];
        device::write(&*region.device, offset, &zeros)?;
        device::flush(&*region.device)?;
        region.write_length(0).map_err(|source| region.error("write", source))?;
        region.flush().map_err(|source| region.error("flush", source))?;
        Ok(region)
    }

    /// The file as a region holds it.
    pub(super) fn open(device: SharedDevice, offset: u64, size_bytes: u64) -> Result<Arc<Self>> {
        let mut newest: Option<Length> = None;
        let mut lost = None;
        for record_offset in LENGTH_OFFSETS {
            let mut block = vec![0; PAGE_BYTES as usize];
            if let Err(error) = device::read(&*device, offset + record_offset, &mut block) {
                lost = Some(super::chain(&error));
                continue;
            }
            match parse_length(&block) {
                Some(length) if newest.is_none_or(|other| length.sequence > other.sequence) => {
                    newest = Some(length);
                }
                Some(_) => {}
                // Not written yet: the first record goes to the second place.
                None if block.iter().all(|byte| *byte == 0) => {}
                None => lost = Some("checksum".to_owned()),
            }
        }
        let damaged = |what: &str| Err(Error::CatalogDamaged { what: what.to_owned() });
        let Some(length) = newest else { return damaged("neither length record is in order") };
        if length.bytes > size_bytes - FILE_OFFSET || !length.bytes.is_multiple_of(PAGE_BYTES) {
            return damaged("the length is not possible in the region");
        }
        let region = Self::new(device, offset, size_bytes, length);
        if let Some(fault) = lost {
            // The lost one may have been the newer one, with a greater length. Too long is always
            // right, and the next record goes to the place of the lost one. What is behind the
            // length that is known may be the file's, so it is not zeroed: redb writes a page
            // before it reads it.
            tracing::warn!(fault, "a length record of the catalog is damaged; it is replaced");
            let replaced = region.write_length(region.length_bytes_max());
            replaced.map_err(|source| region.error("write", source))?;
            region.flush().map_err(|source| region.error("flush", source))?;
        }
        Ok(region)
    }

    fn lock(&self) -> MutexGuard<'_, Length> {
        self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Device { operation, offset: self.offset, length: self.size_bytes, source }
    }

    /// Size of the region in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Length of the file in bytes.
    pub(super) fn length_bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Longest that the file can be, in bytes.
    pub(super) fn length_bytes_max(&self) -> u64 {
        self.size_bytes - FILE_OFFSET
    }

    /// Whether redb asked for more room than there is since the last call.
    pub(super) fn take_overflow(&self) -> bool {
        self.overflow.swap(false, Ordering::Relaxed)
    }

    /// Sets the mark that [`Region::take_overflow`] took.
    pub(super) fn mark_overflow(&self) {
        self.overflow.store(true, Ordering::Relaxed);
    }

    /// Lets all later accesses fail.
    pub(super) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
    }

    fn check_cut_off(&self) -> io::Result<()> {
        if self.cut_off.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the catalog was abandoned"));
        }
        Ok(())
    }

    /// Gives the file all of the region, durably. redb grows by doubling and so fails with up to
    /// half of the region unused; it takes over a file that it finds longer when it opens it.
    /// Only between two `Database`s.
    pub(super) fn extend_to_max(&self) -> Result<()> {
        let max = self.length_bytes_max();
        self.set_length(max).map_err(|source| self.error("write", source))?;
        self.flush().map_err(|source| self.error("flush", source))
    }

    /// A backend for one `Database`.
    pub(super) fn backend(self: &Arc<Self>) -> RegionBackend {
        RegionBackend(Arc::clone(self))
    }

    fn flush(&self) -> io::Result<()> {
        self.check_cut_off()?;
        self.device.flush()?;
        self.lock().unflushed = false;
        Ok(())
    }

    fn write_length(&self, bytes: u64) -> io::Result<()> {
        let Length { sequence, unflushed, .. } = *self.lock();
        if unflushed {
            // Else both records could be lost at once.
            self.flush()?;
        }
        let sequence = sequence + 1;
        let mut block = vec![0; self.device.block_bytes() as usize];
        put(&mut block, AT_MAGIC, &LENGTH_MAGIC);
        put(&mut block, AT_SEQUENCE, &sequence.to_le_bytes());
        put(&mut block, AT_LENGTH, &bytes.to_le_bytes());
        let checksum = crc32c(&block[..AT_CHECKSUM]);
        put(&mut block, AT_CHECKSUM, &checksum.to_le_bytes());
        let record_offset = LENGTH_OFFSETS[(sequence % 2) as usize];
        self.device.write(self.offset + record_offset, &block)?;
        *self.lock() = Length { sequence, bytes, unflushed: true };
        Ok(())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.check_cut_off()?;
        let old = self.length_bytes();
        if bytes == old {
            return Ok(());
        }
        if !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("catalog length {bytes} is no multiple of {PAGE_BYTES}"),
            ));
        }
        if bytes > self.length_bytes_max() {
            self.overflow.store(true, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the catalog region is full"));
        }
        if bytes > old {
            // The zeros and the length become durable with the flush that redb sends next.
            device::write_zeros(
                &*self.device,
                self.offset + FILE_OFFSET + old,
                self.offset + FILE_OFFSET + bytes,
            )
            .map_err(|error| io::Error::other(super::chain(&error)))?;
        }
        self.write_length(bytes)
    }

    fn check_range(&self, offset: u64, length: usize) -> io::Result<u64> {
        self.check_cut_off()?;
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length_bytes()) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{length} bytes at {offset} are not in the catalog"),
            ));
        }
        Ok(self.offset + FILE_OFFSET + offset)
    }

    /// The block-aligned range around `[start, start + length)`.
    fn aligned(&self, start: u64, length: usize) -> (u64, usize) {
        let block_bytes = u64::from(self.device.block_bytes());
        let first = start - start % block_bytes;
        let end = (start + length as u64).next_multiple_of(block_bytes);
        (first, (end - first) as usize)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = self.check_range(offset, out.len())?;
        let (first, length) = self.aligned(start, out.len());
        if (first, length) == (start, out.len()) {
            return self.device.read(start, out);
        }
        let mut blocks = vec![0; length];
        self.device.read(first, &mut blocks)?;
        let skip = (start - first) as usize;
        out.copy_from_slice(&blocks[skip..skip + out.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = self.check_range(offset, data.len())?;
        let (first, length) = self.aligned(start, data.len());
        if (first, length) == (start, data.len()) {
            return self.device.write(start, data);
        }
        // Only redb's header is written in part (its first page), so nobody else's bytes are at
        // stake; and it lies within one block, which is written whole or not at all.
        let mut blocks = vec![0; length];
        self.device.read(first, &mut blocks)?;
        put(&mut blocks, (start - first) as usize, data);
        self.device.write(first, &blocks)
    }
}

fn parse_length(block: &[u8]) -> Option<Length> {
    let valid = block.starts_with(&LENGTH_MAGIC)
        && u32_at(block, AT_CHECKSUM) == crc32c(&block[..AT_CHECKSUM]);
    valid.then(|| Length {
        sequence: u64_at(block, AT_SEQUENCE),
        bytes: u64_at(block, AT_LENGTH),
        unflushed: false,
    })
}

/// What redb owns: access to the [`Region`].
#[derive(Debug)]
pub(super) struct RegionBackend(Arc<Region>);

impl StorageBackend for RegionBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.length_bytes())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_length(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        // A shrink at close is not flushed by redb.
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim_device::{CrashMode, SimDevice};
    use super::*;

    fn region() -> (Arc<SimDevice>, Arc<Region>) {
        let device = Arc::new(SimDevice::new(512, 32 << 20));
        let region = Region::create(device.clone(), 1 << 20, 16 << 20).unwrap();
        (device, region)
    }

    #[test]
    fn bytes_at_any_offset_come_back() {
        let (device, region) = region();
        region.set_length(1 << 16).unwrap();
        let data: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        region.write(777, &data).unwrap();
        let mut out = vec![0; 5000];
        region.read(777, &mut out).unwrap();
        assert_eq!(out, data);
        let mut whole = vec![0; 1 << 16];
        region.read(0, &mut whole).unwrap();
        assert!(whole[..777].iter().chain(&whole[5777..]).all(|byte| *byte == 0));
        assert!(region.read((1 << 16) - 1, &mut [0; 2]).is_err());
        drop(device);
    }

    #[test]
    fn length_is_the_last_or_the_former_after_a_crash() {
        let (device, region) = region();
        for step in 1..20u64 {
            let flushed = region.length_bytes();
            region.set_length(step * 4096).unwrap();
            for seed in 0..8 {
                let crashed = Arc::new(device.crash(CrashMode::Scramble { seed }));
                let found = Region::open(crashed, 1 << 20, 16 << 20).unwrap().length_bytes();
                assert!(found == flushed || found == step * 4096, "{found} at {step}");
            }
            if step % 3 != 0 {
                region.flush().unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_record_is_replaced_by_the_greatest_length() {
        for damaged in LENGTH_OFFSETS {
            let (device, region) = region();
            for length in [1u64 << 20, 2 << 20, 3 << 20] {
                region.set_length(length).unwrap();
                region.flush().unwrap();
            }
            drop(region);
            device.poke((1 << 20) + damaged + AT_LENGTH as u64, &[1]);
            for _ in 0..2 {
                let region = Region::open(device.clone(), 1 << 20, 16 << 20).unwrap();
                assert_eq!(region.length_bytes(), region.length_bytes_max());
            }
        }
        // Not written yet is not damaged.
        let (device, region) = region();
        drop(region);
        let region = Region::open(device, 1 << 20, 16 << 20).unwrap();
        assert_eq!(region.length_bytes(), 0);
    }

    #[test]
    fn more_than_the_region_is_refused_and_remembered() {
        let (_device, region) = region();
        assert!(region.set_length(16 << 20).is_err());
        assert!(region.take_overflow());
        assert!(!region.take_overflow());
        region.extend_to_max().unwrap();
        assert_eq!(region.length_bytes(), (16 << 20) - 8192);
    }

    #[test]
    fn grown_room_reads_as_zeros() {
        let (_device, region) = region();
        region.set_length(8192).unwrap();
        region.write(0, &[9; 8192]).unwrap();
        region.set_length(4096).unwrap();
        region.set_length(8192).unwrap();
        let mut out = [1; 4096];
        region.read(4096, &mut out).unwrap();
        assert_eq!(out, [0; 4096]);
    }
}
