//! What can go wrong below: errno for control calls, [`IoError`] for commands.

use std::ffi::c_int;
use std::fmt;

use spdk_sys as sys;

/// An error number of the C side, kept positive (`ENOENT` is 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted; for bdevs: claimed by another module.
    pub const PERM: Self = Self(1);
    /// No such file or entry.
    pub const NOENT: Self = Self(2);
    /// Input/output error.
    pub const IO: Self = Self(5);
    /// Out of memory or of pool elements.
    pub const NOMEM: Self = Self(12);
    /// Busy.
    pub const BUSY: Self = Self(16);
    /// Exists already.
    pub const EXIST: Self = Self(17);
    /// No such device.
    pub const NODEV: Self = Self(19);
    /// Invalid argument.
    pub const INVAL: Self = Self(22);
    /// Protocol not supported: SPDK was built without the transport.
    pub const PROTONOSUPPORT: Self = Self(93);
    /// Canceled: the other side went away.
    pub const CANCELED: Self = Self(125);

    /// `Ok` for zero and above, else the error; SPDK returns negative errno.
    ///
    /// # Errors
    /// When `rc` is negative.
    pub fn check(rc: c_int) -> Result<(), Self> {
        if rc < 0 { Err(Self(-rc)) } else { Ok(()) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl std::error::Error for Errno {}

/// How a command to a bdev failed.
#[derive(Clone, Copy)]
pub struct IoError(pub(super) sys::psc_status);

impl IoError {
    /// `Err` unless the command succeeded.
    pub(super) fn check(status: &sys::psc_status) -> Result<(), Self> {
        if status.status == sys::PSC_STATUS_SUCCESS { Ok(()) } else { Err(Self(*status)) }
    }

    /// Set when the command never reached the device.
    pub fn errno(&self) -> Option<Errno> {
        (self.0.error != 0).then(|| Errno(self.0.error.abs()))
    }

    /// NVMe status code type and status code; for errors that are not NVMe's, their translation.
    pub fn nvme(&self) -> (u16, u16) {
        (self.0.sct, self.0.sc)
    }

    /// The command was aborted (by a reset, an abort, or a device on its way out).
    pub fn is_aborted(&self) -> bool {
        self.0.status == sys::PSC_STATUS_ABORTED
    }
}

impl PartialEq for IoError {
    fn eq(&self, other: &Self) -> bool {
        (self.0.status, self.0.error, self.nvme()) == (other.0.status, other.0.error, other.nvme())
    }
}

impl Eq for IoError {}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(errno) = self.errno() {
            return write!(f, "not submitted: {errno}");
        }
        match self.0.status {
            sys::PSC_STATUS_ABORTED => f.write_str("aborted"),
            sys::PSC_STATUS_MISCOMPARE => f.write_str("miscompare"),
            sys::PSC_STATUS_NVME_ERROR => {
                write!(f, "NVMe status type {:#x} code {:#04x}", self.0.sct, self.0.sc)
            }
            status => write!(f, "I/O error (bdev status {status})"),
        }
    }
}

impl fmt::Debug for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoError({self})")
    }
}

impl std::error::Error for IoError {}
