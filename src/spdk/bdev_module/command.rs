//! Commands to bdevs of ours: [`BdevIo`] is one, on its thread; [`ParkedIo`] one in waiting.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;

use spdk_sys as sys;

use super::device::{BdevDevice, DeviceBox, for_each_channel};
use crate::spdk::bdev::{ChannelInner, IoChannel, IoType};
use crate::spdk::error::{Errno, IoError};
use crate::spdk::guard;
use crate::spdk::thread::Thread;

/// NVMe status (type generic command status) "Namespace is Write Protected".
pub const SC_WRITE_PROTECTED: u16 = 0x20;
/// NVMe status code type "generic command status".
pub const SCT_GENERIC: u16 = 0;

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
    pub(super) unsafe fn from_raw(raw: *mut sys::psc_io) -> Self {
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

    /// When the bdev layer got the command, in ticks of [`crate::spdk::clock`].
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
    /// is in flight, so no hold on it is needed. The way of the data path; `done` is a function, not a
    /// pointer to one, and the compiler makes one piece of it and the way here.
    pub fn forward_via<F>(self, base: impl FnOnce(&D::Channel) -> &IoChannel, done: F)
    where
        F: Fn(&mut BdevIo<D>, Result<(), IoError>) + Copy + 'static,
    {
        self.send_via(base, done, sys::PSC_FORWARD_COMPLETE);
    }

    /// The same, but `failed` is told of failure only; success ends the command without a call.
    ///
    /// # Panics
    /// With a zero-copy command: its state has to stay for its end.
    pub fn pass_via<F>(self, base: impl FnOnce(&D::Channel) -> &IoChannel, failed: F)
    where
        F: Fn(&mut BdevIo<D>, Result<(), IoError>) + Copy + 'static,
    {
        const { assert!(!mem::needs_drop::<D::IoState>(), "nobody would drop the state") };
        assert_ne!(self.kind(), IoType::Zcopy, "zero copy goes through forward_via()");
        self.send_via(base, failed, sys::PSC_FORWARD_PASS);
    }

    #[inline]
    fn send_via<F>(self, base: impl FnOnce(&D::Channel) -> &IoChannel, _done: F, mode: u32)
    where
        F: Fn(&mut BdevIo<D>, Result<(), IoError>) + Copy + 'static,
    {
        extern "C" fn finished<D, F>(raw: *mut sys::psc_io, status: *const sys::psc_status)
        where
            D: BdevDevice,
            F: Fn(&mut BdevIo<D>, Result<(), IoError>) + Copy + 'static,
        {
            guard("command completion", || {
                // SAFETY: given to SPDK by send_via(), which is done with it.
                let mut io = unsafe { BdevIo::<D>::from_raw(raw) };
                // SAFETY: send_via() was given an F, which is Copy and has no bytes to read.
                let done = unsafe { NonNull::<F>::dangling().read() };
                // SAFETY: NULL, or valid during this call.
                done(&mut io, result_of(unsafe { status.as_ref() }));
                // C completes it next.
                let _ = io.finish(status.is_null());
            });
        }
        const { assert!(size_of::<F>() == 0, "a function that captures nothing") };
        let (desc, channel) = {
            let base = base(self.channel());
            (base.desc().raw(), base.raw())
        };
        let (raw, offset_blocks) = (self.raw(), self.offset_blocks());
        mem::forget(self);
        // SAFETY: the command is SPDK's from here until `finished`. The bdev layer destroys a channel,
        // and with it what is in it, only after its commands have completed, this one with them.
        unsafe {
            sys::psc_io_forward(
                raw,
                desc,
                channel,
                offset_blocks,
                Some(finished::<D, F>),
                mode as u8,
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
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
        let hold = Rc::into_raw(Rc::clone(&base.inner)).cast_mut().cast();
        let raw = self.raw();
        mem::forget(self);
        // SAFETY: the command is ours until psc_io_forward(), and SPDK's from then until `finished`.
        // F is a function pointer (or an Option of one) of pointer size. The hold keeps channel and
        // descriptor alive.
        unsafe {
            (*raw).user_fn = mem::transmute_copy::<F, *mut c_void>(&done);
            (*raw).user_hold = hold;
            let (desc, channel) = (base.desc().raw(), base.raw());
            sys::psc_io_forward(raw, desc, channel, offset_blocks, Some(finished), mode);
        }
    }

    /// # Safety
    /// After `send()` with the same F, once.
    unsafe fn take_sent<F: Copy>(&mut self) -> F {
        let raw = self.raw();
        // SAFETY: the caller's promise: `user_fn` holds an F, `user_hold` an Rc.
        unsafe {
            drop(Rc::from_raw((*raw).user_hold.cast_const().cast::<ChannelInner>()));
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
