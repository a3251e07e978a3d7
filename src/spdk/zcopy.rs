//! Zero copies as their users see them: a buffer of the bdev's, lent and given back.

use std::{ptr, slice};

use spdk_sys as sys;

use super::bdev::{IoChannel, IoType};
use super::error::IoError;
use super::executor::{Sender, oneshot};
use super::guard;

/// What C holds while a start or an end is under way, else the [`ZcopyBuf`].
struct Op {
    raw: sys::psc_op,
    /// Of the phase under way. An end that nobody waits for has none.
    sender: Option<Sender<Result<Option<ZcopyBuf>, IoError>>>,
    /// Keeps channel and descriptor.
    _channel: IoChannel,
}

/// A stretch of a bdev in a buffer of the bdev's. Dropping it ends it without commit.
#[must_use = "what is put into it counts only with its end"]
pub struct ZcopyBuf(Option<Box<Op>>);

impl IoChannel {
    /// Has the bdev lend a buffer for these blocks. It holds what is on them if `populate`, else
    /// anything. Only for bdevs of which [`super::bdev::BdevInfo::supports`] says so, and, with SPDK
    /// 20.07, all that can be read and written, for up to 64 KiB.
    ///
    /// # Errors
    /// As the device reports. `EBADF` on a descriptor that is not for writing.
    ///
    /// # Panics
    /// On another thread than the channel's.
    pub async fn zcopy(
        &self,
        offset_blocks: u64,
        num_blocks: u64,
        populate: bool,
    ) -> Result<ZcopyBuf, IoError> {
        assert!(self.inner.thread.is_current(), "commands are submitted on the channel's thread");
        let (sender, receiver) = oneshot();
        let raw = sys::psc_op {
            desc: self.desc().raw(),
            ch: self.raw(),
            offset_blocks,
            num_blocks,
            zcopy_populate: populate,
            type_: IoType::Zcopy as u32,
            cb: Some(phase_done),
            ..Default::default()
        };
        submit(Box::new(Op { raw, sender: Some(sender), _channel: self.clone() }));
        let buf = receiver.await.expect("a start is answered")?;
        Ok(buf.expect("a start that succeeds lends a buffer"))
    }
}

/// Starts the zero copy, or ends it if it is started. On its thread.
fn submit(op: Box<Op>) {
    let op = Box::into_raw(op);
    // SAFETY: the box is leaked until phase_done(), which may come before this returns; so it is not
    // used afterwards. It keeps channel and descriptor alive.
    unsafe {
        (*op).raw.ctx = op.cast();
        sys::psc_op_submit(&raw mut (*op).raw);
    }
}

extern "C" fn phase_done(raw: *mut sys::psc_op) {
    guard("zero copy completion", || {
        // SAFETY: `ctx` is the Box of submit(); SPDK is done with it, and calls once.
        let mut op = unsafe { Box::from_raw((*raw).ctx.cast::<Op>()) };
        let sender = op.sender.take();
        let result = IoError::check(&op.raw.status);
        // Whoever gets it, or nobody, has it ended.
        let buf = (!op.raw.zcopy_io.is_null()).then(|| ZcopyBuf(Some(op)));
        if let Some(sender) = sender {
            sender.send(result.map(|()| buf));
        }
    });
}

impl ZcopyBuf {
    /// The buffer's parts, in order, each an address and a length.
    fn parts(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        let op = self.0.as_ref().expect("there until its end");
        let count = usize::try_from(op.raw.iovcnt).unwrap_or(0);
        // SAFETY: set by the start, and valid until the end: `iovcnt` elements.
        let iovs = unsafe { slice::from_raw_parts(op.raw.iovs, count) };
        iovs.iter().map(|iov| (iov.iov_base.cast(), iov.iov_len))
    }

    /// Puts `data` into the buffer, at this byte of it.
    ///
    /// # Panics
    /// When the buffer is shorter.
    pub fn write(&mut self, mut at: usize, mut data: &[u8]) {
        for (base, len) in self.parts() {
            let count = data.len().min(len.saturating_sub(at));
            // SAFETY: inside the part, which is ours to write until the end. It may be what the device
            // holds its data in, so there are no references to it. `data` cannot overlap it.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), base.add(at.min(len)), count) };
            (at, data) = (at.saturating_sub(len), &data[count..]);
        }
        assert!(data.is_empty(), "{} bytes do not fit", data.len());
    }

    /// What is in the buffer.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (base, len) in self.parts() {
            let end = bytes.len();
            bytes.resize(end + len, 0);
            // SAFETY: the part is readable until the end; a new vector does not overlap it.
            unsafe { ptr::copy_nonoverlapping(base, bytes[end..].as_mut_ptr(), len) };
        }
        bytes
    }

    /// Gives the buffer back; with `commit`, what is in it is what the bdev holds from then on.
    /// Without, what was put into it may be there or not.
    ///
    /// # Errors
    /// As the device reports.
    pub async fn end(mut self, commit: bool) -> Result<(), IoError> {
        let mut op = self.0.take().expect("there until its end");
        let (sender, receiver) = oneshot();
        op.raw.zcopy_commit = commit;
        op.sender = Some(sender);
        submit(op);
        receiver.await.expect("an end is answered").map(|_| ())
    }
}

impl Drop for ZcopyBuf {
    fn drop(&mut self) {
        if let Some(mut op) = self.0.take() {
            op.raw.zcopy_commit = false;
            submit(op);
        }
    }
}
