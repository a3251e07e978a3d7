//! Bdevs of ours: what one does, and how it is registered and removed.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use spdk_sys as sys;
use uuid::Uuid;

use super::command::BdevIo;
use crate::spdk::bdev::IoType;
use crate::spdk::error::Errno;
use crate::spdk::executor::{self, LocalFuture, Receiver, Sender, oneshot};
use crate::spdk::guard;
use crate::spdk::json::JsonWriter;
use crate::spdk::thread::Thread;

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
pub(super) struct DeviceBox<D: BdevDevice> {
    pub(super) device: Arc<D>,
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

pub(super) fn for_each_channel<D, F, G>(device: &DeviceBox<D>, f: F, done: G)
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
