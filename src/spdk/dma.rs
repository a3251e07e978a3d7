//! Memory that devices can reach.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use spdk_sys as sys;

use super::error::Errno;

/// Pinned, DMA-able memory from SPDK's hugepages. Allocating takes a lock: not for the I/O path.
pub struct DmaBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for DmaBuf {}
// SAFETY: shared references only read.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// `len` zero bytes at an address that is a multiple of `align` (a power of two).
    ///
    /// # Errors
    /// `ENOMEM` when the hugepages are used up.
    pub fn zeroed(len: usize, align: usize) -> Result<Self, Errno> {
        assert!(align.is_power_of_two(), "alignment {align} is not a power of two");
        assert!(len > 0, "an empty DMA buffer");
        // SAFETY: any sizes are legal; NULL on failure.
        let ptr = unsafe { sys::psc_dma_zmalloc(len, align) };
        let ptr = NonNull::new(ptr.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { ptr, len })
    }

    pub(super) fn as_raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: from psc_dma_zmalloc(), freed once.
        unsafe { sys::psc_dma_free(self.ptr.as_ptr().cast()) };
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this length and initialized (zeroed); while a device writes to it,
        // the I/O owns the DmaBuf.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and &mut self is exclusive.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DmaBuf({} bytes)", self.len)
    }
}
