//! Bdevs of our own: [`BdevDevice`] is what one does, [`BdevIo`] a command to it.
//!
//! The module "presnap" itself, its function tables and everything SPDK calls are C (module.c).

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use spdk_sys as sys;
use uuid::Uuid;

use super::bdev::{BdevInfo, ChannelInner, IoChannel, IoType};
use super::error::{Errno, IoError};
use super::executor::{self, LocalFuture, Receiver, Sender, oneshot};
use super::guard;
use super::json::JsonWriter;
use super::thread::Thread;

/// NVMe status (type generic command status) "Namespace is Write Protected".
pub const SC_WRITE_PROTECTED: u16 = 0x20;
/// NVMe status code type "generic command status".
pub const SCT_GENERIC: u16 = 0;

/// A bdev of ours. One value serves all threads; what belongs to one thread goes into `Channel`.
pub trait BdevDevice: Send + Sync + Sized + 'static {
    /// Made per SPDK thread that uses the bdev; used and dropped only there. Commands may be
    /// submitted to it from within completions, hence `&Channel`: use `Cell` and the like.
    type Channel: 'static;

    /// Per-command state, in the command itself: at most [`IO_STATE_BYTES_MAX`], alignment 8.
    /// `Default` when the command is submitted, dropped when it completes. That of a zero copy stays
    /// from its successful start to the end of its end.
    type IoState: Default + 'static;

    /// Whether the bdev takes such commands.
    fn io_type_supported(&self, io_type: IoType) -> bool;

    /// A channel for the current thread.
    ///
    /// # Errors
    /// SPDK passes them to whoever wanted a channel.
    fn create_channel(&self) -> Result<Self::Channel, Errno>;

    /// A command has come. It must be completed, now or later, on this thread.
    fn submit(&self, channel: &Self::Channel, io: BdevIo<Self>);

    /// Calls that recreate the bdev, for `save_config`. On the app thread.
    fn write_config_json(&self, _w: &mut JsonWriter) {}

    /// Members of the bdev's `driver_specific` object in `bdev_get_bdevs`. On the app thread.
    fn dump_info_json(&self, _w: &mut JsonWriter) {}

    /// The bdev is closed by all users and forgotten by SPDK: let go of what is below. Runs on the
    /// thread that registered it; the device itself is dropped after the future is done and the last
    /// channel gone.
    fn destruct(self: Arc<Self>) -> LocalFuture<()> {
        Box::pin(async {})
    }
}

/// Room for [`BdevDevice::IoState`].
pub const IO_STATE_BYTES_MAX: usize = sys::PSC_IO_USER_BYTES as usize;

/// What a bdev of ours looks like.
#[derive(Clone, Debug, Default)]
pub struct BdevSpec {
    /// Unique name.
    pub name: String,
    /// Kind of device, as users see it.
    pub product_name: &'static CStr,
    /// Identity; nil lets SPDK make up one.
    pub uuid: Uuid,
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Size in blocks.
    pub block_count: u64,
    /// 0 for none.
    pub optimal_io_boundary_blocks: u32,
    /// Reads and writes (nothing else) then never cross the boundary.
    pub split_on_optimal_io_boundary: bool,
    /// 0 for one block.
    pub write_unit_blocks: u32,
    /// Longest compare-and-write; 0 for one block.
    pub compare_and_write_blocks: u16,
    /// Of data buffers, as a power of two; 0 for any. With 20.07 anything else makes the bdev layer
    /// split I/O at 64 KiB: prefer 0 and leave copying to the bdev below.
    pub required_alignment_log2: u8,
    /// Has a volatile write cache.
    pub write_cache: bool,
    /// Shown as write-protected over NVMe-oF. (The device itself has to refuse writes.)
    pub read_only: bool,
}

/// What C holds of a device.
struct DeviceBox<D: BdevDevice> {
    device: Arc<D>,
    home: Thread,
    psc: Cell<*mut sys::psc_device>,
    /// SPDK of 20.07 refuses, for good, to let go of a device while one of these is under way.
    for_each_in_flight: AtomicUsize,
    /// Dropped, on the home thread, when the device is gone.
    gone: ManuallyDrop<Gone>,
}

// SAFETY: `psc` is written once, before any other thread can know of the box; `gone` is touched on
// the home thread only; the rest is Sync anyway.
unsafe impl<D: BdevDevice> Sync for DeviceBox<D> {}

#[derive(Default)]
struct GoneState {
    gone: Cell<bool>,
    waiters: RefCell<Vec<Sender<()>>>,
}

struct Gone(Rc<GoneState>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.gone.set(true);
        for waiter in self.0.waiters.take() {
            waiter.send(());
        }
    }
}

/// A registered bdev. Dropping this leaves it registered; SPDK removes it at the app's end.
pub struct Registration<D: BdevDevice> {
    device: Arc<D>,
    raw: NonNull<DeviceBox<D>>,
    state: Rc<GoneState>,
}

/// Registers a bdev, on the app thread. By the time this returns, others may have opened it.
///
/// # Errors
/// `EEXIST` when the name is taken.
pub fn register<D: BdevDevice>(spec: &BdevSpec, device: Arc<D>) -> Result<Registration<D>, Errno> {
    const {
        assert!(size_of::<D::IoState>() <= IO_STATE_BYTES_MAX, "IoState is too large");
        assert!(align_of::<D::IoState>() <= 8, "IoState wants too much alignment");
    }
    assert!(Thread::app().is_current(), "bdevs are registered on the app thread");
    let name = CString::new(spec.name.as_str()).map_err(|_| Errno::INVAL)?;
    let raw_spec = sys::psc_device_spec {
        name: name.as_ptr(),
        product_name: spec.product_name.as_ptr(),
        block_count: spec.block_count,
        block_bytes: spec.block_bytes,
        optimal_io_boundary_blocks: spec.optimal_io_boundary_blocks,
        write_unit_blocks: spec.write_unit_blocks,
        compare_and_write_blocks: u32::from(spec.compare_and_write_blocks),
        required_alignment_log2: spec.required_alignment_log2,
        split_on_optimal_io_boundary: spec.split_on_optimal_io_boundary,
        write_cache: spec.write_cache,
        read_only: spec.read_only,
        uuid: spec.uuid.into_bytes(),
    };
    let state = Rc::new(GoneState::default());
    let raw = Box::into_raw(Box::new(DeviceBox {
        device: Arc::clone(&device),
        home: Thread::current(),
        psc: Cell::new(ptr::null_mut()),
        for_each_in_flight: AtomicUsize::new(0),
        gone: ManuallyDrop::new(Gone(Rc::clone(&state))),
    }));
    // SAFETY: the spec lives through the call and is copied by it; the table is static; the box lives
    // until psr_free(). `psc` is written before SPDK shows the bdev to anyone.
    let rc = unsafe {
        sys::psc_device_register(
            &raw const raw_spec,
            Ops::<D>::TABLE,
            raw.cast(),
            (*raw).psc.as_ptr(),
        )
    };
    if let Err(error) = Errno::check(rc) {
        // SAFETY: not registered, so C has forgotten it; no channel was made.
        drop(unsafe { Box::from_raw(raw) });
        return Err(error);
    }
    let raw = NonNull::new(raw).expect("from a box");
    Ok(Registration { device, raw, state })
}

impl<D: BdevDevice> Registration<D> {
    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Whether the bdev is gone, for whatever reason.
    pub fn is_gone(&self) -> bool {
        self.state.gone.get()
    }

    fn device_box(&self) -> Option<&DeviceBox<D>> {
        if self.is_gone() {
            return None;
        }
        // SAFETY: freed by psr_free(), which sets `gone`; both on the app thread, as is this.
        Some(unsafe { self.raw.as_ref() })
    }

    /// Resolves when the bdev is gone.
    pub fn gone(&self) -> Receiver<()> {
        let (sender, receiver) = oneshot();
        if self.is_gone() {
            sender.send(());
        } else {
            self.state.waiters.borrow_mut().push(sender);
        }
        receiver
    }

    /// Removes the bdev: users are told to close it, and when all have, it is destructed. Resolves
    /// when it is gone. Dropping the future does not stop the removal.
    pub async fn unregister(&self) {
        extern "C" fn done(_ctx: *mut c_void, rc: c_int) {
            guard("unregister", || {
                if let Err(error) = Errno::check(rc)
                    && error != Errno::BUSY
                {
                    tracing::error!(%error, "bdev not unregistered cleanly");
                }
            });
        }
        let gone = self.gone();
        if let Some(device) = self.device_box() {
            // SAFETY: registered, on the app thread. Being removed already is reported as EBUSY.
            unsafe { sys::psc_device_unregister(device.psc.get(), Some(done), ptr::null_mut()) };
        }
        // Only the end of the process could cancel this.
        let _ = gone.await;
    }

    /// Tells users of the bdev a new size.
    ///
    /// # Errors
    /// `EBUSY` when made smaller while open; `ENODEV` when gone.
    pub fn resize(&self, block_count: u64) -> Result<(), Errno> {
        let device = self.device_box().ok_or(Errno::NODEV)?;
        // SAFETY: registered, on the app thread.
        Errno::check(unsafe { sys::psc_device_resize(device.psc.get(), block_count) })
    }

    /// Runs `f` for each channel, on the channel's thread, one after the other.
    ///
    /// # Errors
    /// `ENODEV` when the bdev is gone.
    pub async fn for_each_channel(
        &self,
        f: impl Fn(&D, &D::Channel) + Send + Sync + 'static,
    ) -> Result<(), Errno> {
        let (sender, receiver) = oneshot();
        let device = self.device_box().ok_or(Errno::NODEV)?;
        for_each_channel(device, f, move || sender.send(()));
        receiver.await
    }
}

struct ForEach<D: BdevDevice, F, G> {
    device: NonNull<DeviceBox<D>>,
    f: F,
    done: G,
}

fn for_each_channel<D, F, G>(device: &DeviceBox<D>, f: F, done: G)
where
    D: BdevDevice,
    F: Fn(&D, &D::Channel) + Send + Sync + 'static,
    G: FnOnce() + 'static,
{
    extern "C" fn step<D: BdevDevice, F: Fn(&D, &D::Channel), G>(
        ctx: *mut c_void,
        channel: *mut c_void,
    ) {
        guard("for each channel", || {
            // SAFETY: the ForEach lives until `finish`; the device until after, see psr_destruct().
            let each = unsafe { &*ctx.cast::<ForEach<D, F, G>>() };
            // SAFETY: SPDK gives an existing channel on its own thread; no &mut to it ever exists.
            let (device, channel) =
                unsafe { (each.device.as_ref(), &*channel.cast::<D::Channel>()) };
            (each.f)(&device.device, channel);
        });
    }
    extern "C" fn finish<D: BdevDevice, F, G: FnOnce()>(ctx: *mut c_void, _rc: c_int) {
        guard("for each channel", || {
            // SAFETY: the box made below; the last call.
            let each = unsafe { Box::from_raw(ctx.cast::<ForEach<D, F, G>>()) };
            // SAFETY: the count keeps the device alive until here.
            unsafe { each.device.as_ref() }.for_each_in_flight.fetch_sub(1, Ordering::Release);
            (each.done)();
        });
    }
    device.for_each_in_flight.fetch_add(1, Ordering::Relaxed);
    let psc = device.psc.get();
    let each = Box::new(ForEach { device: NonNull::from(device), f, done });
    // SAFETY: registered, on an SPDK thread. `f` may be used from other threads (Send, Sync); `done`
    // comes back to this one.
    unsafe {
        sys::psc_device_for_each_channel(
            psc,
            Some(step::<D, F, G>),
            Some(finish::<D, F, G>),
            Box::into_raw(each).cast(),
        );
    }
}

// ---- commands ------------------------------------------------------------------------------------

/// How to end a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Success,
    /// Failed: an internal device error.
    Failed,
    /// Aborted by request.
    Aborted,
    /// The data compared were not equal.
    Miscompare,
    /// Out of resources: SPDK submits it again later. Only while other commands are under way.
    NoMem,
}

/// Identity of a command while it is under way, for finding the target of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoId(usize);

/// Phase and purpose of a zero-copy command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zcopy {
    /// The start phase lends the buffer; the end phase takes it back.
    pub start: bool,
    /// Start: the buffer has to hold what is on the device (a read).
    pub populate: bool,
    /// End: the buffer has to be written to the device.
    pub commit: bool,
}

/// A command to a bdev of ours. Has to be completed; dropping it is a bug and ends the process.
#[must_use = "a command has to be completed"]
pub struct BdevIo<D: BdevDevice> {
    raw: NonNull<sys::psc_io>,
    /// Not `Send`: completes on the thread it came on.
    _device: PhantomData<*const D>,
}

/// Called when a forwarded command is done, before it completes.
pub type OnDone<D> = fn(&mut BdevIo<D>, Result<(), IoError>);
/// Called when a forwarded command is done; it then has to be completed.
pub type OnReturn<D> = fn(BdevIo<D>, Result<(), IoError>);

impl<D: BdevDevice> BdevIo<D> {
    fn raw(&self) -> *mut sys::psc_io {
        self.raw.as_ptr()
    }

    fn device_box(&self) -> &DeviceBox<D> {
        // SAFETY: a device outlives its commands.
        unsafe { &*(*self.raw()).device.cast::<DeviceBox<D>>() }
    }

    /// # Safety
    /// `raw` is a command of a device of type D, not owned by any other `BdevIo`, on its thread.
    unsafe fn from_raw(raw: *mut sys::psc_io) -> Self {
        Self { raw: NonNull::new(raw).expect("a command"), _device: PhantomData }
    }

    /// What it is.
    pub fn kind(&self) -> IoType {
        // SAFETY: `raw` is valid until completion, which consumes self. psr_submit() checked that the
        // number is one of IoType's, which is repr(u8).
        unsafe { mem::transmute::<u8, IoType>((*self.raw()).type_) }
    }

    /// First block.
    pub fn offset_blocks(&self) -> u64 {
        // SAFETY: as in kind().
        unsafe { (*self.raw()).offset_blocks }
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> u64 {
        // SAFETY: as in kind().
        unsafe { (*self.raw()).num_blocks }
    }

    /// First block of the source of a copy.
    pub fn source_blocks(&self) -> u64 {
        // SAFETY: as in kind().
        unsafe { (*self.raw()).src_offset_blocks }
    }

    /// When the bdev layer got the command, in ticks of [`super::clock`].
    pub fn submit_ticks(&self) -> u64 {
        // SAFETY: as in kind().
        unsafe { (*self.raw()).submit_ticks }
    }

    /// For [`IoType::Zcopy`].
    pub fn zcopy(&self) -> Zcopy {
        // SAFETY: as in kind().
        let raw = unsafe { &*self.raw() };
        Zcopy { start: raw.zcopy_start, populate: raw.zcopy_populate, commit: raw.zcopy_commit }
    }

    /// Has a zero copy work on a buffer of the bdev layer instead of one that the bdev below lends: from
    /// here on its start is forwarded as a read into that buffer, and its end as a write of it. At the
    /// start.
    ///
    /// # Panics
    /// With anything else.
    pub fn use_own_buffer(&mut self) {
        assert!(self.kind() == IoType::Zcopy && self.zcopy().start, "the start of a zero copy");
        // SAFETY: as in kind(); C reads it when the command is forwarded.
        unsafe { (*self.raw()).zcopy_own_buf = true };
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device_box().device
    }

    /// The channel the command came on.
    pub fn channel(&self) -> &D::Channel {
        // SAFETY: a channel outlives its commands; no &mut to it ever exists.
        unsafe { &*(*self.raw()).channel.cast::<D::Channel>() }
    }

    fn state_raw(&self) -> *mut D::IoState {
        // SAFETY: as in kind(); size and alignment are asserted in register().
        unsafe { (&raw mut (*self.raw()).user).cast() }
    }

    /// The command's own state.
    pub fn state(&self) -> &D::IoState {
        // SAFETY: written when submitted; borrowed through self.
        unsafe { &*self.state_raw() }
    }

    /// The command's own state.
    pub fn state_mut(&mut self) -> &mut D::IoState {
        // SAFETY: as above, exclusively.
        unsafe { &mut *self.state_raw() }
    }

    /// Device, channel and state at once.
    pub fn parts(&mut self) -> (&D, &D::Channel, &mut D::IoState) {
        // SAFETY: three separate objects, each as in its own function; all borrow self.
        unsafe {
            let device = &*(*self.raw()).device.cast::<DeviceBox<D>>();
            let channel = &*(*self.raw()).channel.cast::<D::Channel>();
            (&device.device, channel, &mut *self.state_raw())
        }
    }

    /// Identity while under way.
    pub fn id(&self) -> IoId {
        IoId(self.raw() as usize)
    }

    /// For [`IoType::Abort`]: the command to abort. `None` when it is none of presnap's.
    pub fn abort_target(&self) -> Option<IoId> {
        // SAFETY: an abort command, valid until completion.
        let target = unsafe { sys::psc_io_abort_target(self.raw()) };
        (!target.is_null()).then_some(IoId(target as usize))
    }

    /// Ends self and its state, leaving the completion to the caller.
    fn finish(self, success: bool) -> *mut sys::psc_io {
        let raw = self.raw();
        if success && self.kind() == IoType::Zcopy && self.zcopy().start {
            // SAFETY: as in kind(). The end finds the state as it is.
            unsafe { sys::psc_io_zcopy_keep(raw) };
        } else {
            // SAFETY: written when submitted, or by the start of the zero copy that ends; dropped once.
            unsafe { ptr::drop_in_place(self.state_raw()) };
        }
        mem::forget(self);
        raw
    }

    /// Ends the command.
    pub fn complete(self, status: Status) {
        let success = status == Status::Success;
        let status = match status {
            Status::Success => sys::PSC_STATUS_SUCCESS,
            Status::Failed => sys::PSC_STATUS_FAILED,
            Status::Aborted => sys::PSC_STATUS_ABORTED,
            Status::Miscompare => sys::PSC_STATUS_MISCOMPARE,
            Status::NoMem => sys::PSC_STATUS_NOMEM,
        };
        // SAFETY: completed once, on its thread.
        unsafe { sys::psc_io_complete(self.finish(success), status) };
    }

    /// Ends the command with an NVMe status.
    pub fn complete_nvme(self, sct: u16, sc: u16) {
        // SAFETY: completed once, on its thread.
        unsafe { sys::psc_io_complete_nvme(self.finish(sct == 0 && sc == 0), 0, sct, sc) };
    }

    /// Ends the command as another one ended.
    pub fn complete_result(self, result: Result<(), IoError>) {
        match result {
            Ok(()) => self.complete(Status::Success),
            // SAFETY: completed once, on its thread; the status is copied.
            Err(error) => unsafe {
                sys::psc_io_complete_status(self.finish(false), &raw const error.0);
            },
        }
    }

    /// Sends the command to the bdev below, at the same offset. When that has done it, `done` runs,
    /// and the command ends as the one below did. Nothing is allocated; if SPDK is short of
    /// resources, the command waits for them.
    pub fn forward(self, base: &IoChannel, done: Option<OnDone<D>>) {
        let offset_blocks = self.offset_blocks();
        self.forward_at(base, offset_blocks, done);
    }

    /// The same, to a channel that is part of the command's own one: that lives as long as the command
    /// is in flight, so no hold on it is needed. The way of the data path.
    pub fn forward_via(
        self,
        base: impl FnOnce(&D::Channel) -> &IoChannel,
        done: Option<OnDone<D>>,
    ) {
        let (desc, channel) = {
            let base = base(self.channel());
            (base.desc().raw(), base.raw())
        };
        let offset_blocks = self.offset_blocks();
        let complete = sys::PSC_FORWARD_COMPLETE as u8;
        // SAFETY: the bdev layer destroys a channel, and with it what is in it, only after its
        // commands have completed, this one with them.
        unsafe {
            self.send_raw(
                desc,
                channel,
                ptr::null_mut(),
                offset_blocks,
                done,
                Self::forwarded,
                complete,
            );
        }
    }

    /// The same, at another offset.
    pub fn forward_at(self, base: &IoChannel, offset_blocks: u64, done: Option<OnDone<D>>) {
        self.send(base, offset_blocks, done, Self::forwarded, sys::PSC_FORWARD_COMPLETE as u8);
    }

    extern "C" fn forwarded(raw: *mut sys::psc_io, status: *const sys::psc_status) {
        guard("command completion", || {
            // SAFETY: given to SPDK by send_raw(), which is done with it.
            let mut io = unsafe { Self::from_raw(raw) };
            // SAFETY: set by send_raw().
            let done = unsafe { io.take_sent::<Option<OnDone<D>>>() };
            // SAFETY: NULL, or valid during this call.
            let result = result_of(unsafe { status.as_ref() });
            if let Some(done) = done {
                done(&mut io, result);
            }
            // C completes it next.
            let _ = io.finish(result.is_ok());
        });
    }

    /// The same, but `done` gets the command back and has to complete it, or send it elsewhere.
    ///
    /// # Panics
    /// With a zero-copy command: its buffer has to go up with it.
    pub fn forward_then(self, base: &IoChannel, offset_blocks: u64, done: OnReturn<D>) {
        extern "C" fn finished<D: BdevDevice>(
            raw: *mut sys::psc_io,
            status: *const sys::psc_status,
        ) {
            guard("command completion", || {
                // SAFETY: given to SPDK by send(), which is done with it.
                let mut io = unsafe { BdevIo::<D>::from_raw(raw) };
                // SAFETY: set by send().
                let done = unsafe { io.take_sent::<OnReturn<D>>() };
                // SAFETY: NULL, or valid during this call.
                done(io, result_of(unsafe { status.as_ref() }));
            });
        }
        assert_ne!(self.kind(), IoType::Zcopy, "zero copy goes through forward()");
        self.send(base, offset_blocks, done, finished::<D>, sys::PSC_FORWARD_RETURN as u8);
    }

    fn send<F: Copy>(
        self,
        base: &IoChannel,
        offset_blocks: u64,
        done: F,
        finished: extern "C" fn(*mut sys::psc_io, *const sys::psc_status),
        mode: u8,
    ) {
        let hold = Rc::into_raw(Rc::clone(&base.inner)).cast_mut().cast();
        // SAFETY: the hold keeps channel and descriptor alive.
        unsafe {
            let (desc, channel) = (base.desc().raw(), base.raw());
            self.send_raw(desc, channel, hold, offset_blocks, done, finished, mode);
        }
    }

    /// # Safety
    /// `desc` and `channel` live until the command ends; `hold` is NULL or an `Rc<ChannelInner>`.
    #[allow(clippy::too_many_arguments, reason = "the parts of one call")]
    unsafe fn send_raw<F: Copy>(
        self,
        desc: *mut sys::spdk_bdev_desc,
        channel: *mut sys::spdk_io_channel,
        hold: *mut c_void,
        offset_blocks: u64,
        done: F,
        finished: extern "C" fn(*mut sys::psc_io, *const sys::psc_status),
        mode: u8,
    ) {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
        let raw = self.raw();
        mem::forget(self);
        // SAFETY: the command is ours until psc_io_forward(), and SPDK's from then until `finished`.
        // F is a function pointer (or an Option of one) of pointer size.
        unsafe {
            (*raw).user_fn = mem::transmute_copy::<F, *mut c_void>(&done);
            (*raw).user_hold = hold;
            sys::psc_io_forward(raw, desc, channel, offset_blocks, Some(finished), mode);
        }
    }

    /// # Safety
    /// After `send()` with the same F, once.
    unsafe fn take_sent<F: Copy>(&mut self) -> F {
        let raw = self.raw();
        // SAFETY: the caller's promise: `user_fn` holds an F, `user_hold` an Rc or nothing.
        unsafe {
            let hold = (*raw).user_hold.cast_const().cast::<ChannelInner>();
            if !hold.is_null() {
                drop(Rc::from_raw(hold));
            }
            mem::transmute_copy::<*mut c_void, F>(&(*raw).user_fn)
        }
    }

    /// Gets the data buffers of a read that came without (others have theirs); `then` runs at once
    /// or later. `Err` when there is no memory that large.
    pub fn get_buf(self, then: OnReturn<D>) {
        extern "C" fn got<D: BdevDevice>(raw: *mut sys::psc_io, success: bool) {
            guard("data buffer", || {
                // SAFETY: given to SPDK by get_buf(), which is done with it.
                let io = unsafe { BdevIo::<D>::from_raw(raw) };
                // SAFETY: set by get_buf().
                let then =
                    unsafe { mem::transmute_copy::<*mut c_void, OnReturn<D>>(&(*raw).user_fn) };
                let result = if success {
                    Ok(())
                } else {
                    Err(IoError(sys::psc_status {
                        status: sys::PSC_STATUS_FAILED,
                        error: -Errno::NOMEM.0,
                        ..Default::default()
                    }))
                };
                then(io, result);
            });
        }
        let raw = self.raw();
        mem::forget(self);
        // SAFETY: the command is SPDK's until `got`; OnReturn is a function pointer.
        unsafe {
            (*raw).user_fn = mem::transmute_copy::<OnReturn<D>, *mut c_void>(&then);
            sys::psc_io_get_buf(raw, Some(got::<D>));
        }
    }

    /// The data buffers of a read (after [`Self::get_buf`]), write or compare, in order.
    pub fn data_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let mut count = 0;
        // SAFETY: valid until completion, which consumes self.
        let iovs = unsafe { sys::psc_io_iovs(self.raw(), &raw mut count) };
        let count = if iovs.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
        (0..count).filter_map(move |i| {
            // SAFETY: `count` elements; the buffers belong to the command until it completes, and
            // self is borrowed exclusively for as long as the slices.
            unsafe {
                let iov = *iovs.add(i);
                (!iov.iov_base.is_null())
                    .then(|| slice::from_raw_parts_mut(iov.iov_base.cast::<u8>(), iov.iov_len))
            }
        })
    }

    /// Ends a read with zeroes.
    pub fn complete_zeroes(self) {
        self.get_buf(|mut io, result| {
            if result.is_ok() {
                for data in io.data_mut() {
                    data.fill(0);
                }
            }
            io.complete_result(result);
        });
    }

    /// Runs `f` for each channel of the device, on the channel's thread; `then` gets the command
    /// back. For resets.
    pub fn for_each_channel(
        self,
        f: impl Fn(&D, &D::Channel) + Send + Sync + 'static,
        then: OnReturn<D>,
    ) {
        let device = NonNull::from(self.device_box());
        // SAFETY: a device outlives its commands, and `self` is one, kept by the closure below.
        let device = unsafe { device.as_ref() };
        for_each_channel(device, f, move || then(self, Ok(())));
    }

    /// Makes a token of the command that may be kept and sent anywhere. Only its thread can turn it
    /// into a command again.
    pub fn park(self) -> ParkedIo<D> {
        let parked = ParkedIo { raw: self.raw, _device: PhantomData };
        mem::forget(self);
        parked
    }
}

impl<D: BdevDevice> Drop for BdevIo<D> {
    fn drop(&mut self) {
        lost("a command was dropped without completion");
    }
}

/// C's "NULL for success".
fn result_of(status: Option<&sys::psc_status>) -> Result<(), IoError> {
    status.map_or(Ok(()), |status| Err(IoError(*status)))
}

#[cold]
fn lost(what: &str) -> ! {
    eprintln!("presnap: {what}");
    std::process::abort();
}

/// A command in waiting, see [`BdevIo::park`]. Dropping it ends the process, as with the command.
#[must_use = "a command has to be completed"]
pub struct ParkedIo<D: BdevDevice> {
    raw: NonNull<sys::psc_io>,
    _device: PhantomData<fn(D)>,
}

// SAFETY: the command is touched only after resume() or resume_with() brought it to its own thread;
// finding out which one that is reads what never changes while the command is under way.
unsafe impl<D: BdevDevice> Send for ParkedIo<D> {}

impl<D: BdevDevice> ParkedIo<D> {
    /// The command's thread.
    pub fn thread(&self) -> Thread {
        // SAFETY: valid until completion; the thread of a command under way does not change.
        let raw = unsafe { sys::psc_io_thread(self.raw.as_ptr()) };
        Thread::from_raw(raw).expect("a command has a thread")
    }

    /// Identity of the command.
    pub fn id(&self) -> IoId {
        IoId(self.raw.as_ptr() as usize)
    }

    /// The command again.
    ///
    /// # Panics
    /// On another thread than the command's.
    pub fn resume(self) -> BdevIo<D> {
        assert!(self.thread().is_current(), "a command is resumed on its own thread");
        let raw = self.raw.as_ptr();
        mem::forget(self);
        // SAFETY: park() took it from a BdevIo; on its thread.
        unsafe { BdevIo::from_raw(raw) }
    }

    /// Sends the command to its thread and runs `f` with it there. Nothing is allocated.
    pub fn resume_with(self, f: fn(BdevIo<D>)) {
        extern "C" fn run<D: BdevDevice>(ctx: *mut c_void) {
            guard("resume", || {
                let raw = ctx.cast::<sys::psc_io>();
                // SAFETY: sent below, to the command's thread; `user_fn` was set there.
                unsafe {
                    let f = mem::transmute_copy::<*mut c_void, fn(BdevIo<D>)>(&(*raw).user_fn);
                    f(BdevIo::from_raw(raw));
                }
            });
        }
        let thread = self.thread();
        let raw = self.raw.as_ptr();
        mem::forget(self);
        // SAFETY: parked, so no one else uses the field; a function pointer.
        unsafe { (*raw).user_fn = mem::transmute_copy::<fn(BdevIo<D>), *mut c_void>(&f) };
        if !thread.send_raw(run::<D>, raw.cast()) {
            lost("the thread of a parked command has exited");
        }
    }
}

impl<D: BdevDevice> Drop for ParkedIo<D> {
    fn drop(&mut self) {
        lost("a parked command was dropped without completion");
    }
}

// ---- what C calls --------------------------------------------------------------------------------

struct Ops<D>(PhantomData<D>);

impl<D: BdevDevice> Ops<D> {
    const TABLE: &'static sys::psc_device_ops = &sys::psc_device_ops {
        psr_submit: Some(psr_submit::<D>),
        psr_io_type_supported: Some(psr_io_type_supported::<D>),
        psr_channel_create: Some(psr_channel_create::<D>),
        psr_channel_destroy: Some(psr_channel_destroy::<D>),
        psr_dump_info_json: Some(psr_dump_info_json::<D>),
        psr_write_config_json: Some(psr_write_config_json::<D>),
        psr_destruct: Some(psr_destruct::<D>),
        psr_free: Some(psr_free::<D>),
    };
}

/// # Safety
/// `device` is the `DeviceBox` given to `psc_device_register`, and `psr_free` was not called.
unsafe fn device_box<'a, D: BdevDevice>(device: *mut c_void) -> &'a DeviceBox<D> {
    // SAFETY: the caller's promise.
    unsafe { &*device.cast::<DeviceBox<D>>() }
}

extern "C" fn psr_submit<D: BdevDevice>(
    device: *mut c_void,
    channel: *mut c_void,
    raw: *mut sys::psc_io,
) {
    guard("submit", || {
        // SAFETY: SPDK submits to live devices and channels, on the channel's thread; the command is
        // ours now. Its state area is large enough (register()) and holds nothing to drop.
        unsafe {
            let device = device_box::<D>(device);
            let channel = &*channel.cast::<D::Channel>();
            if IoType::from_raw(u32::from((*raw).type_)).is_none() {
                sys::psc_io_complete(raw, sys::PSC_STATUS_FAILED);
                return;
            }
            if u32::from((*raw).type_) != sys::PSC_IO_ZCOPY || !(*raw).zcopy_kept {
                (&raw mut (*raw).user).cast::<D::IoState>().write(D::IoState::default());
            }
            device.device.submit(channel, BdevIo::from_raw(raw));
        }
    });
}

extern "C" fn psr_io_type_supported<D: BdevDevice>(device: *mut c_void, io_type: u32) -> bool {
    guard("io_type_supported", || {
        // SAFETY: SPDK asks live devices.
        let device = unsafe { device_box::<D>(device) };
        IoType::from_raw(io_type).is_some_and(|io_type| device.device.io_type_supported(io_type))
    })
}

extern "C" fn psr_channel_create<D: BdevDevice>(
    device: *mut c_void,
    channel: *mut *mut c_void,
) -> c_int {
    guard("channel", || {
        // SAFETY: SPDK creates channels of live devices.
        let device = unsafe { device_box::<D>(device) };
        match device.device.create_channel() {
            Ok(made) => {
                // SAFETY: C gives room for one pointer.
                unsafe { *channel = Box::into_raw(Box::new(made)).cast() };
                0
            }
            Err(error) => -error.0,
        }
    })
}

extern "C" fn psr_channel_destroy<D: BdevDevice>(_device: *mut c_void, channel: *mut c_void) {
    guard("channel", || {
        // SAFETY: made in psr_channel_create(), destroyed once, on the same thread, without commands.
        drop(unsafe { Box::from_raw(channel.cast::<D::Channel>()) });
    });
}

extern "C" fn psr_dump_info_json<D: BdevDevice>(
    device: *mut c_void,
    w: *mut sys::spdk_json_write_ctx,
) {
    guard("dump_info_json", || {
        // SAFETY: SPDK asks live devices.
        let device = unsafe { device_box::<D>(device) };
        device.device.dump_info_json(&mut JsonWriter::new(w));
    });
}

extern "C" fn psr_write_config_json<D: BdevDevice>(
    device: *mut c_void,
    w: *mut sys::spdk_json_write_ctx,
) {
    guard("write_config_json", || {
        // SAFETY: SPDK asks live devices.
        let device = unsafe { device_box::<D>(device) };
        device.device.write_config_json(&mut JsonWriter::new(w));
    });
}

/// SPDK calls on the thread that closed the bdev last; the rest happens on the home thread.
extern "C" fn psr_destruct<D: BdevDevice>(device: *mut c_void, _psc: *mut sys::psc_device) {
    /// How often to look whether channel iterations have ended; they take microseconds.
    const FOR_EACH_POLL: Duration = Duration::from_micros(200);

    async fn destruct<D: BdevDevice>(device: usize) {
        // SAFETY: the box stays until psr_free(), which only the last line leads to.
        let device = unsafe { device_box::<D>(device as *mut c_void) };
        Arc::clone(&device.device).destruct().await;
        while device.for_each_in_flight.load(Ordering::Acquire) > 0 {
            executor::sleep(FOR_EACH_POLL).await;
        }
        // SAFETY: called once; SPDK has called destruct.
        unsafe { sys::psc_device_destruct_done(device.psc.get()) };
    }
    guard("destruct", || {
        // SAFETY: SPDK destructs live devices, once.
        let home = unsafe { device_box::<D>(device) }.home;
        let device = device as usize;
        home.send(move || executor::spawn(destruct::<D>(device)).detach());
    });
}

/// On the home thread, which called `psc_device_destruct_done`.
extern "C" fn psr_free<D: BdevDevice>(device: *mut c_void) {
    guard("free", || {
        // SAFETY: the last call about this device; the box is of register().
        let mut device = unsafe { Box::from_raw(device.cast::<DeviceBox<D>>()) };
        // SAFETY: taken once, and the box is not used for it again.
        let gone = unsafe { ManuallyDrop::take(&mut device.gone) };
        drop(device);
        drop(gone);
    });
}

// ---- the module's hooks --------------------------------------------------------------------------

/// Looks at a new bdev, asynchronously if it is of interest.
pub type ExamineDisk = fn(&BdevInfo) -> Option<LocalFuture<()>>;

/// What the module does beside its devices. All on the app thread.
#[derive(Default)]
pub struct ModuleHooks {
    /// The bdev subsystem starts.
    pub init: Option<fn()>,
    /// The bdev subsystem is about to stop; bdevs are still there.
    pub fini_start: Option<fn()>,
    /// Calls for `save_config`, before those of single bdevs.
    pub config_json: Option<fn(&mut JsonWriter)>,
    /// A bdev has come. Decide now whether to open and claim it; no I/O yet.
    pub examine_config: Option<fn(&BdevInfo)>,
    /// A bdev has come, and I/O is allowed; start of the app waits for the future. `None`: not ours.
    pub examine_disk: Option<ExamineDisk>,
}

static HOOKS: OnceLock<Mutex<&'static ModuleHooks>> = OnceLock::new();

fn hooks() -> &'static ModuleHooks {
    const NONE: &ModuleHooks = &ModuleHooks {
        init: None,
        fini_start: None,
        config_json: None,
        examine_config: None,
        examine_disk: None,
    };
    HOOKS.get().map_or(NONE, |hooks| *hooks.lock().expect("nothing panics with it"))
}

/// Sets the hooks; before [`super::app::run`].
pub fn set_hooks(new: &'static ModuleHooks) {
    let slot = HOOKS.get_or_init(|| Mutex::new(new));
    *slot.lock().expect("nothing panics with it") = new;
}

pub(super) extern "C" fn psr_module_init() -> c_int {
    guard("module init", || {
        if let Some(init) = hooks().init {
            init();
        }
        0
    })
}

pub(super) extern "C" fn psr_module_fini_start() {
    guard("module fini start", || {
        if let Some(fini_start) = hooks().fini_start {
            fini_start();
        }
    });
}

pub(super) extern "C" fn psr_module_fini() {}

pub(super) extern "C" fn psr_module_config_json(w: *mut sys::spdk_json_write_ctx) {
    guard("config_json", || {
        if let Some(config_json) = hooks().config_json {
            config_json(&mut JsonWriter::new(w));
        }
    });
}

pub(super) extern "C" fn psr_examine_config(bdev: *mut sys::spdk_bdev) {
    guard("examine_config", || {
        if let Some(examine) = hooks().examine_config {
            // SAFETY: SPDK examines registered bdevs, on an SPDK thread.
            examine(&unsafe { BdevInfo::from_raw(bdev) });
        }
    });
}

pub(super) extern "C" fn psr_examine_disk(bdev: *mut sys::spdk_bdev) {
    guard("examine_disk", || {
        let future = hooks().examine_disk.and_then(|examine| {
            // SAFETY: SPDK examines registered bdevs, on an SPDK thread.
            examine(&unsafe { BdevInfo::from_raw(bdev) })
        });
        match future {
            // SAFETY: once per call of this function.
            None => unsafe { sys::psc_examine_disk_done() },
            Some(future) => executor::spawn(async move {
                future.await;
                // SAFETY: once per call of this function, on the same thread.
                unsafe { sys::psc_examine_disk_done() };
            })
            .detach(),
        }
    });
}
