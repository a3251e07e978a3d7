//! The device that a store lives on, as the catalog's OS thread sees it.
//!
//! Blocking, so never used on a reactor: the data path moves slots through its own channel. The
//! order of writes between two flushes is not to be relied on.

use std::{fmt, io, sync::Arc};

use super::error::{Error, Result};

/// Smallest logical block that a store device may have, in bytes.
pub const BLOCK_BYTES_MIN: u32 = 512;
/// Largest logical block that a store device may have, in bytes: the catalog's page size.
pub const BLOCK_BYTES_MAX: u32 = 4096;

/// A block device with blocking calls. Offsets and lengths are in bytes and multiples of
/// [`Device::block_bytes`]; a block is written whole or not at all, several blocks are not.
pub trait Device: Send + Sync + fmt::Debug {
    /// Logical block size in bytes, a power of two.
    fn block_bytes(&self) -> u32;

    /// Size in bytes, a multiple of the block size.
    fn size_bytes(&self) -> u64;

    /// Reads `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// Whatever the device reports; the buffer's content is then undefined.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`; durable only after the next [`Device::flush`].
    ///
    /// # Errors
    /// Whatever the device reports; any of the blocks may then have been written.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes all completed writes durable.
    ///
    /// # Errors
    /// Whatever the device reports; any of the writes may then be lost.
    fn flush(&self) -> io::Result<()>;
}

/// A device shared between the catalog and whoever opened it.
pub type SharedDevice = Arc<dyn Device>;

/// Checks that the store can work with the device's block size and size.
///
/// # Errors
/// [`Error::Invalid`] naming the property that does not fit.
pub fn check_geometry(device: &dyn Device) -> Result<()> {
    let block_bytes = device.block_bytes();
    if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
    {
        return Err(Error::Invalid {
            what: format!(
                "the device has blocks of {block_bytes} bytes; a store takes {BLOCK_BYTES_MIN} \
                 to {BLOCK_BYTES_MAX}: format the namespace with another LBA size"
            ),
        });
    }
    if !device.size_bytes().is_multiple_of(u64::from(block_bytes)) {
        return Err(Error::Invalid {
            what: format!(
                "the device has {} bytes, which is no multiple of its {block_bytes}-byte blocks",
                device.size_bytes()
            ),
        });
    }
    Ok(())
}

/// Reads, with the place in the error.
pub(super) fn read(device: &dyn Device, offset: u64, buffer: &mut [u8]) -> Result<()> {
    device.read(offset, buffer).map_err(|source| Error::Device {
        operation: "read",
        offset,
        length: buffer.len() as u64,
        source,
    })
}

/// Writes, with the place in the error.
pub(super) fn write(device: &dyn Device, offset: u64, data: &[u8]) -> Result<()> {
    device.write(offset, data).map_err(|source| Error::Device {
        operation: "write",
        offset,
        length: data.len() as u64,
        source,
    })
}

/// Flushes, with the place in the error.
pub(super) fn flush(device: &dyn Device) -> Result<()> {
    device.flush().map_err(|source| Error::Device {
        operation: "flush",
        offset: 0,
        length: device.size_bytes(),
        source,
    })
}

/// Writes zeros over `[start, end)`, in pieces.
pub(super) fn write_zeros(device: &dyn Device, start: u64, end: u64) -> Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    let zeros = vec![0; PIECE_BYTES.min(end.saturating_sub(start)) as usize];
    let mut offset = start;
    while offset < end {
        let length = PIECE_BYTES.min(end - offset);
        write(device, offset, &zeros[..length as usize])?;
        offset += length;
    }
    Ok(())
}
