//! Bdevs as their users see them: what there is, opening, commands.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::future::poll_fn;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use spdk_sys as sys;
use uuid::Uuid;

use super::dma::DmaBuf;
use super::error::{Errno, IoError};
use super::guard;
use super::thread::Thread;

/// Kinds of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IoType {
    /// Read.
    Read = sys::PSC_IO_READ as u8,
    /// Write.
    Write = sys::PSC_IO_WRITE as u8,
    /// Unmap: the contents become indeterminate.
    Unmap = sys::PSC_IO_UNMAP as u8,
    /// Make earlier completed writes durable.
    Flush = sys::PSC_IO_FLUSH as u8,
    /// Abort everything and start afresh.
    Reset = sys::PSC_IO_RESET as u8,
    /// Write zeroes.
    WriteZeroes = sys::PSC_IO_WRITE_ZEROES as u8,
    /// Lend or take back a buffer of the device. See [`super::zcopy`].
    Zcopy = sys::PSC_IO_ZCOPY as u8,
    /// Compare.
    Compare = sys::PSC_IO_COMPARE as u8,
    /// Compare and, if equal, write; atomic.
    CompareAndWrite = sys::PSC_IO_COMPARE_AND_WRITE as u8,
    /// Abort one command.
    Abort = sys::PSC_IO_ABORT as u8,
    /// Copy within the device (SPDK 23.01 and later).
    Copy = sys::PSC_IO_COPY as u8,
}

impl IoType {
    /// Those that presnap knows.
    pub const ALL: [Self; 11] = [
        Self::Read,
        Self::Write,
        Self::Unmap,
        Self::Flush,
        Self::Reset,
        Self::WriteZeroes,
        Self::Zcopy,
        Self::Compare,
        Self::CompareAndWrite,
        Self::Abort,
        Self::Copy,
    ];

    /// A match, not a search: used for each command.
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            sys::PSC_IO_READ => Self::Read,
            sys::PSC_IO_WRITE => Self::Write,
            sys::PSC_IO_UNMAP => Self::Unmap,
            sys::PSC_IO_FLUSH => Self::Flush,
            sys::PSC_IO_RESET => Self::Reset,
            sys::PSC_IO_WRITE_ZEROES => Self::WriteZeroes,
            sys::PSC_IO_ZCOPY => Self::Zcopy,
            sys::PSC_IO_COMPARE => Self::Compare,
            sys::PSC_IO_COMPARE_AND_WRITE => Self::CompareAndWrite,
            sys::PSC_IO_ABORT => Self::Abort,
            sys::PSC_IO_COPY => Self::Copy,
            _ => return None,
        })
    }

    /// Whether a command of this kind can change what is read afterwards. (A zero copy can, too, when
    /// it is committed.)
    pub fn modifies(self) -> bool {
        matches!(
            self,
            Self::Write | Self::Unmap | Self::WriteZeroes | Self::CompareAndWrite | Self::Copy
        )
    }
}

/// What a bdev is, at the time of asking.
#[allow(clippy::struct_excessive_bools, reason = "independent properties")]
#[derive(Clone, Debug)]
pub struct BdevInfo {
    /// Name, unique in the process.
    pub name: String,
    /// Kind of device ("Malloc disk", "AIO disk", ...).
    pub product_name: String,
    /// The module that made it ("malloc", "aio", ...).
    pub module_name: String,
    /// The module that holds the exclusive write claim.
    pub claimed_by: Option<String>,
    /// Identity. Whether it is the same after a restart depends on the module; see the notes in
    /// [`super`].
    pub uuid: Uuid,
    /// Size in blocks.
    pub block_count: u64,
    /// Block size in bytes, interleaved metadata included.
    pub block_bytes: u32,
    /// Block size in bytes without metadata.
    pub data_block_bytes: u32,
    /// Metadata bytes per block.
    pub md_bytes: u32,
    /// Metadata is part of the block.
    pub md_interleaved: bool,
    /// Data integrity field type; 0 for none.
    pub dif_type: u32,
    /// Writes have to be a multiple of this many blocks.
    pub write_unit_blocks: u32,
    /// I/O should not cross multiples of this; 0 for none.
    pub optimal_io_boundary_blocks: u32,
    /// The bdev layer splits reads and writes there.
    pub split_on_optimal_io_boundary: bool,
    /// Longest compare-and-write.
    pub compare_and_write_blocks: u32,
    /// Alignment of data buffers in bytes; others are copied by the bdev layer.
    pub buf_align: usize,
    /// Has a volatile write cache: only flushed writes are durable.
    pub write_cache: bool,
    /// Zoned: cannot be written at random.
    pub zoned: bool,
    io_types: u64,
}

impl BdevInfo {
    /// Whether the bdev takes such commands (or the bdev layer emulates them).
    pub fn supports(&self, io_type: IoType) -> bool {
        self.io_types >> (io_type as u32) & 1 == 1
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.block_count * u64::from(self.block_bytes)
    }

    /// # Safety
    /// `raw` is a registered bdev, and this is an SPDK thread.
    pub(super) unsafe fn from_raw(raw: *mut sys::spdk_bdev) -> Self {
        let mut info = sys::psc_bdev_info::default();
        // SAFETY: the caller's promise; `info` is ours.
        unsafe { sys::psc_bdev_info(raw, &raw mut info) };
        let text = |raw: *const c_char| {
            if raw.is_null() {
                return None;
            }
            // SAFETY: C strings that live as long as the bdev and its modules.
            Some(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
        };
        Self {
            name: text(info.name).unwrap_or_default(),
            product_name: text(info.product_name).unwrap_or_default(),
            module_name: text(info.module_name).unwrap_or_default(),
            claimed_by: text(info.claimed_by),
            uuid: Uuid::from_bytes(info.uuid),
            block_count: info.block_count,
            block_bytes: info.block_bytes,
            data_block_bytes: info.data_block_bytes,
            md_bytes: info.md_bytes,
            md_interleaved: info.md_interleaved,
            dif_type: info.dif_type,
            write_unit_blocks: info.write_unit_blocks,
            optimal_io_boundary_blocks: info.optimal_io_boundary_blocks,
            split_on_optimal_io_boundary: info.split_on_optimal_io_boundary,
            compare_and_write_blocks: info.compare_and_write_blocks,
            buf_align: info.buf_align as usize,
            write_cache: info.write_cache,
            zoned: info.zoned,
            io_types: info.io_types,
        }
    }
}

/// The bdev of that name or alias. On the app thread.
pub fn find(name: &str) -> Option<BdevInfo> {
    let name = CString::new(name).ok()?;
    assert!(Thread::app().is_current(), "bdevs are looked up on the app thread");
    // SAFETY: the bdev list changes on the app thread only, which is this one.
    let raw = unsafe { sys::psc_bdev_by_name(name.as_ptr()) };
    // SAFETY: as above.
    (!raw.is_null()).then(|| unsafe { BdevInfo::from_raw(raw) })
}

/// All bdevs. On the app thread.
pub fn all() -> Vec<BdevInfo> {
    assert!(Thread::app().is_current(), "bdevs are looked up on the app thread");
    let mut infos = Vec::new();
    // SAFETY: the bdev list changes on the app thread only, which is this one.
    let mut raw = unsafe { sys::psc_bdev_first() };
    while !raw.is_null() {
        // SAFETY: as above.
        infos.push(unsafe { BdevInfo::from_raw(raw) });
        // SAFETY: as above.
        raw = unsafe { sys::psc_bdev_next(raw) };
    }
    infos
}

/// What happens to a bdev that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BdevEvent {
    /// It is going away: close it. Commands still under way will complete.
    Remove,
    /// Its size changed.
    Resize,
    /// Media management (open-channel devices).
    MediaManagement,
}

struct EventHandler(Box<dyn Fn(BdevEvent)>);

struct DescInner {
    raw: NonNull<sys::spdk_bdev_desc>,
    thread: Thread,
    claimed: AtomicBool,
    block_bytes: u32,
    /// SPDK's reference to the handler, made with `Rc::into_raw`; touched on `thread` only.
    handler: *const EventHandler,
}

// SAFETY: SPDK lets any SPDK thread submit to a descriptor and get channels from it. What is tied to
// the opening thread (closing, the handler) happens there: see Drop.
unsafe impl Send for DescInner {}
// SAFETY: as above.
unsafe impl Sync for DescInner {}

/// An open bdev. Clones share it; the last one closes it, on the thread that opened it.
#[derive(Clone)]
pub struct Desc(Arc<DescInner>);

impl Desc {
    /// Opens the bdev of that name. `on_event` runs on the current thread; dropping the `Desc` in it
    /// is fine.
    ///
    /// # Errors
    /// `ENODEV` without such a bdev, `EPERM` for writing to one that a module has claimed.
    pub fn open(
        name: &str,
        writable: bool,
        on_event: impl Fn(BdevEvent) + 'static,
    ) -> Result<Self, Errno> {
        let name = CString::new(name).map_err(|_| Errno::NODEV)?;
        let thread = Thread::current();
        let handler = Rc::into_raw(Rc::new(EventHandler(Box::new(on_event))));
        let mut raw = ptr::null_mut();
        // SAFETY: on an SPDK thread; the handler stays valid until after closing.
        let rc = unsafe {
            sys::psc_desc_open(name.as_ptr(), writable, handler.cast_mut().cast(), &raw mut raw)
        };
        if let Err(error) = Errno::check(rc) {
            // SAFETY: into_raw() above; SPDK did not take it.
            drop(unsafe { Rc::from_raw(handler) });
            return Err(error);
        }
        let raw = NonNull::new(raw).expect("a descriptor");
        // SAFETY: an open descriptor keeps its bdev registered.
        let info = unsafe { BdevInfo::from_raw(sys::psc_desc_bdev(raw.as_ptr())) };
        Ok(Self(Arc::new(DescInner {
            raw,
            thread,
            claimed: AtomicBool::new(false),
            block_bytes: info.block_bytes,
            handler,
        })))
    }

    /// Takes the exclusive write claim for presnap; given back on closing.
    ///
    /// # Errors
    /// `EPERM` when another module, or another `Desc`, has it.
    pub fn claim(&self) -> Result<(), Errno> {
        assert!(self.0.thread.is_current(), "claimed on the opening thread");
        // SAFETY: open, on the thread that opened it.
        Errno::check(unsafe { sys::psc_desc_claim(self.0.raw.as_ptr()) })?;
        self.0.claimed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What the bdev is, now.
    pub fn info(&self) -> BdevInfo {
        // SAFETY: an open descriptor keeps its bdev registered.
        unsafe { BdevInfo::from_raw(sys::psc_desc_bdev(self.raw())) }
    }

    /// Block size in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.0.block_bytes
    }

    /// A channel for submitting commands from the current SPDK thread.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn channel(&self) -> Result<IoChannel, Errno> {
        let thread = Thread::current();
        // SAFETY: open, on an SPDK thread.
        let raw = unsafe { sys::psc_desc_get_channel(self.raw()) };
        let raw = NonNull::new(raw).ok_or(Errno::NOMEM)?;
        let inner = ChannelInner { raw, thread, desc: self.clone() };
        Ok(IoChannel { inner: Rc::new(inner), _local: PhantomData })
    }

    pub(super) fn raw(&self) -> *mut sys::spdk_bdev_desc {
        self.0.raw.as_ptr()
    }
}

impl std::fmt::Debug for Desc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Desc({:p})", self.0.raw)
    }
}

struct Closing {
    raw: NonNull<sys::spdk_bdev_desc>,
    claimed: bool,
    handler: *const EventHandler,
}

// SAFETY: made in DescInner::drop, used up on the opening thread.
unsafe impl Send for Closing {}

impl Closing {
    /// On the opening thread.
    fn close(self) {
        if self.claimed {
            // SAFETY: claimed by this descriptor, still open.
            unsafe { sys::psc_desc_release(self.raw.as_ptr()) };
        }
        // SAFETY: opened once, closed once, on the thread that opened it; no channel is left, for
        // each holds a Desc. SPDK calls the handler no more.
        unsafe { sys::psc_desc_close(self.raw.as_ptr()) };
        // SAFETY: into_raw() in open(). Should the handler be running right now, that call holds a
        // reference of its own.
        drop(unsafe { Rc::from_raw(self.handler) });
    }
}

impl Drop for DescInner {
    fn drop(&mut self) {
        let closing =
            Closing { raw: self.raw, claimed: *self.claimed.get_mut(), handler: self.handler };
        if self.thread.is_current() {
            closing.close();
        } else {
            self.thread.send(move || closing.close());
        }
    }
}

pub(super) extern "C" fn psr_desc_event(event: u32, ctx: *mut c_void) {
    guard("bdev event", || {
        let handler = ctx.cast_const().cast::<EventHandler>();
        // SAFETY: SPDK calls only while the descriptor is open, and then the reference of open() is
        // there; the second one keeps the handler alive should it close the descriptor.
        let handler = unsafe {
            Rc::increment_strong_count(handler);
            Rc::from_raw(handler)
        };
        let event = match event {
            sys::PSC_EVENT_REMOVE => BdevEvent::Remove,
            sys::PSC_EVENT_RESIZE => BdevEvent::Resize,
            _ => BdevEvent::MediaManagement,
        };
        (handler.0)(event);
    });
}

pub(super) struct ChannelInner {
    raw: NonNull<sys::spdk_io_channel>,
    pub(super) thread: Thread,
    desc: Desc,
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        assert!(self.thread.is_current(), "an I/O channel is dropped on its own thread");
        // SAFETY: got once, put once, on the same thread; no command is under way, for each holds
        // the channel.
        unsafe { sys::psc_channel_put(self.raw.as_ptr()) };
    }
}

/// Where commands to one bdev are submitted from one SPDK thread. Clones share it.
#[derive(Clone)]
pub struct IoChannel {
    pub(super) inner: Rc<ChannelInner>,
    _local: PhantomData<*const ()>,
}

/// A stretch of a buffer and where on the bdev it goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in the buffer, in bytes.
    pub buf_offset: usize,
    /// Where on the bdev.
    pub offset_blocks: u64,
    /// How much.
    pub num_blocks: u64,
}

impl IoChannel {
    /// The bdev.
    pub fn desc(&self) -> &Desc {
        &self.inner.desc
    }

    pub(super) fn raw(&self) -> *mut sys::spdk_io_channel {
        self.inner.raw.as_ptr()
    }

    /// Reads into the front of the buffer.
    pub async fn read(
        &self,
        buf: DmaBuf,
        offset_blocks: u64,
        num_blocks: u64,
    ) -> (DmaBuf, Result<(), IoError>) {
        self.read_parts(buf, &[Part { buf_offset: 0, offset_blocks, num_blocks }]).await
    }

    /// Writes the front of the buffer.
    pub async fn write(
        &self,
        buf: DmaBuf,
        offset_blocks: u64,
        num_blocks: u64,
    ) -> (DmaBuf, Result<(), IoError>) {
        self.write_parts(buf, &[Part { buf_offset: 0, offset_blocks, num_blocks }]).await
    }

    /// Reads all parts at the same time; the first error counts. The parts must not overlap in the
    /// buffer.
    pub async fn read_parts(&self, buf: DmaBuf, parts: &[Part]) -> (DmaBuf, Result<(), IoError>) {
        let (buf, result) = self.submit(IoType::Read, Some(buf), parts, 0).await;
        (buf.expect("given to submit"), result)
    }

    /// Writes all parts at the same time; the first error counts.
    pub async fn write_parts(&self, buf: DmaBuf, parts: &[Part]) -> (DmaBuf, Result<(), IoError>) {
        let (buf, result) = self.submit(IoType::Write, Some(buf), parts, 0).await;
        (buf.expect("given to submit"), result)
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// As the device reports.
    pub async fn write_zeroes(&self, offset_blocks: u64, num_blocks: u64) -> Result<(), IoError> {
        self.submit_plain(IoType::WriteZeroes, offset_blocks, num_blocks, 0).await
    }

    /// Unmaps.
    ///
    /// # Errors
    /// As the device reports.
    pub async fn unmap(&self, offset_blocks: u64, num_blocks: u64) -> Result<(), IoError> {
        self.submit_plain(IoType::Unmap, offset_blocks, num_blocks, 0).await
    }

    /// Flushes the whole device.
    ///
    /// # Errors
    /// As the device reports; `ENOTSUP` where [`BdevInfo::supports`] says so.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.submit_plain(IoType::Flush, 0, self.inner.desc.info().block_count, 0).await
    }

    /// Resets the device.
    ///
    /// # Errors
    /// As the device reports.
    pub async fn reset(&self) -> Result<(), IoError> {
        self.submit_plain(IoType::Reset, 0, 0, 0).await
    }

    /// Copies within the device (SPDK 23.01 and later).
    ///
    /// # Errors
    /// As the device reports; `ENOTSUP` with older SPDK.
    pub async fn copy(
        &self,
        target_blocks: u64,
        source_blocks: u64,
        num_blocks: u64,
    ) -> Result<(), IoError> {
        self.submit_plain(IoType::Copy, target_blocks, num_blocks, source_blocks).await
    }

    async fn submit_plain(
        &self,
        io_type: IoType,
        offset_blocks: u64,
        num_blocks: u64,
        source_blocks: u64,
    ) -> Result<(), IoError> {
        let part = Part { buf_offset: 0, offset_blocks, num_blocks };
        self.submit(io_type, None, &[part], source_blocks).await.1
    }

    /// The commands own the buffer until all are done, also if this future is dropped before.
    async fn submit(
        &self,
        io_type: IoType,
        buf: Option<DmaBuf>,
        parts: &[Part],
        source_blocks: u64,
    ) -> (Option<DmaBuf>, Result<(), IoError>) {
        assert!(self.inner.thread.is_current(), "commands are submitted on the channel's thread");
        let block_bytes = usize::try_from(self.inner.desc.block_bytes()).expect("64 bit");
        let base = buf.as_ref().map_or(ptr::null_mut(), DmaBuf::as_raw);
        let room = buf.as_ref().map_or(usize::MAX, |buf| buf.len());
        let batch = Rc::new(RefCell::new(Batch {
            buf,
            left: parts.len(),
            result: Ok(()),
            waker: None,
            _channel: self.clone(),
        }));
        for part in parts {
            let len = usize::try_from(part.num_blocks).expect("64 bit") * block_bytes;
            if !base.is_null() {
                let end = part.buf_offset.checked_add(len);
                assert!(end.is_some_and(|end| end <= room), "{part:?} is beyond the buffer");
            }
            let op = Box::into_raw(Box::new(Op {
                raw: sys::psc_op::default(),
                iov: sys::iovec {
                    iov_base: base.wrapping_add(part.buf_offset).cast(),
                    iov_len: len,
                },
                batch: Rc::clone(&batch),
            }));
            // SAFETY: the box is leaked until op_done(), so op and iov stay where they are. The
            // batch keeps buffer and channel (with its descriptor) alive until then. On the
            // channel's thread (asserted above).
            unsafe {
                (*op).raw.desc = self.inner.desc.raw();
                (*op).raw.ch = self.raw();
                (*op).raw.iovs = &raw mut (*op).iov;
                (*op).raw.iovcnt = 1;
                (*op).raw.offset_blocks = part.offset_blocks;
                (*op).raw.num_blocks = part.num_blocks;
                (*op).raw.src_offset_blocks = source_blocks;
                (*op).raw.type_ = io_type as u32;
                (*op).raw.cb = Some(op_done);
                (*op).raw.ctx = op.cast();
                sys::psc_op_submit(&raw mut (*op).raw);
            }
        }
        poll_fn(|cx| {
            let mut batch = batch.borrow_mut();
            if batch.left > 0 {
                batch.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready((batch.buf.take(), batch.result))
        })
        .await
    }
}

impl std::fmt::Debug for IoChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoChannel({:p})", self.inner.raw)
    }
}

struct Batch {
    buf: Option<DmaBuf>,
    left: usize,
    result: Result<(), IoError>,
    waker: Option<Waker>,
    _channel: IoChannel,
}

struct Op {
    raw: sys::psc_op,
    iov: sys::iovec,
    batch: Rc<RefCell<Batch>>,
}

extern "C" fn op_done(raw: *mut sys::psc_op) {
    guard("command completion", || {
        // SAFETY: `ctx` is the Box of submit(); SPDK is done with it, and calls once.
        let op = unsafe { Box::from_raw((*raw).ctx.cast::<Op>()) };
        let waker = {
            let mut batch = op.batch.borrow_mut();
            batch.left -= 1;
            if let Err(error) = IoError::check(&op.raw.status) {
                batch.result = batch.result.and(Err(error));
            }
            if batch.left > 0 { None } else { batch.waker.take() }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    });
}
