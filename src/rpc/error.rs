//! Errors of JSON-RPC methods: an errno as a negative code, and a message for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The errno values that presnap's methods answer with (Linux numbers, as SPDK uses them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    /// Not permitted: the device holds something else, or force is needed.
    Perm = 1,
    /// No such object.
    NoEnt = 2,
    /// A device answered a command with an error.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// In use.
    Busy = 16,
    /// Already there.
    Exist = 17,
    /// The device is gone.
    NoDev = 19,
    /// A parameter cannot be right.
    Inval = 22,
    /// The device is too small or full.
    NoSpc = 28,
    /// What is on the device is damaged.
    BadMsg = 74,
    /// Known but not possible here.
    NotSup = 95,
    /// A deadline passed.
    TimedOut = 110,
    /// The master is not the one the store knows.
    Stale = 116,
}

impl Errno {
    /// Every value, for the documentation.
    pub const ALL: [Self; 13] = [
        Self::Perm,
        Self::NoEnt,
        Self::Io,
        Self::NoMem,
        Self::Busy,
        Self::Exist,
        Self::NoDev,
        Self::Inval,
        Self::NoSpc,
        Self::BadMsg,
        Self::NotSup,
        Self::TimedOut,
        Self::Stale,
    ];

    /// The code in the JSON-RPC error object.
    pub fn code(self) -> i32 {
        -(self as i32)
    }

    /// The C name, as in `errno.h`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perm => "EPERM",
            Self::NoEnt => "ENOENT",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Busy => "EBUSY",
            Self::Exist => "EEXIST",
            Self::NoDev => "ENODEV",
            Self::Inval => "EINVAL",
            Self::NoSpc => "ENOSPC",
            Self::BadMsg => "EBADMSG",
            Self::NotSup => "ENOTSUP",
            Self::TimedOut => "ETIMEDOUT",
            Self::Stale => "ESTALE",
        }
    }

    /// The value with this JSON-RPC code, where presnap uses it.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|errno| errno.code() == code)
    }
}

/// JSON-RPC's own code for a method that does not exist.
pub const METHOD_NOT_FOUND_CODE: i32 = -32601;

/// What a failed method answers: a negative errno, and a message of one line that names the
/// object and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// Negative errno, or one of JSON-RPC's own codes.
    pub code: i32,
    /// One line: what is wrong with which object, and what to do.
    pub message: String,
}

impl RpcError {
    /// An error with a message that names the object and the remedy.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { code: errno.code(), message: message.into() }
    }

    /// `-EINVAL`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Errno::Inval, message)
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Errno::from_code(self.code) {
            Some(errno) => write!(formatter, "{} (-{})", self.message, errno.name()),
            None => write!(formatter, "{} ({})", self.message, self.code),
        }
    }
}

impl std::error::Error for RpcError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_negative_and_come_back() {
        for errno in Errno::ALL {
            assert!(errno.code() < 0);
            assert_eq!(Errno::from_code(errno.code()), Some(errno));
        }
        assert_eq!(Errno::from_code(METHOD_NOT_FOUND_CODE), None);
    }

    #[test]
    fn display_is_one_line_with_the_name_of_the_code() {
        let error = RpcError::new(Errno::NoEnt, "volume \"vol0\" does not exist");
        assert_eq!(error.to_string(), "volume \"vol0\" does not exist (-ENOENT)");
        let other = RpcError { code: -32700, message: "Parse error".into() };
        assert_eq!(other.to_string(), "Parse error (-32700)");
    }
}
