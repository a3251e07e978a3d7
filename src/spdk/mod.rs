//! Safe wrappers of SPDK, one file per concept. Together with `spdk-sys` the only place with `unsafe`.
//!
//! # Threads
//! - SPDK runs *SPDK threads* ([`thread::Thread`]) on *reactors*, OS threads pinned to one CPU each
//!   that never sleep. Nothing on them may block, lock for long or loop for long.
//! - The *app thread* owns everything that is not I/O: RPC, bdev lists, registering and
//!   unregistering, NVMe-oF subsystems, stores. Functions that need it say so and assert it.
//! - Commands arrive on any SPDK thread that has an I/O channel of the bdev, and complete on the one
//!   they arrived on. What belongs to such a thread lives in [`bdev_module::BdevDevice::Channel`].
//! - Other OS threads ([`thread::spawn_os_thread`]) may call [`thread::Thread::send`],
//!   [`thread::Thread::block_on`], [`executor::spawn_on`], and complete a [`executor::oneshot`].
//!   Nothing else here is for them; what must not leave its thread is not `Send`.
//!
//! # Control path: futures
//! [`executor::spawn`] runs a future on the current SPDK thread, and wakes it from anywhere. Dropping
//! a future never frees memory a device may still write to: commands own their buffers
//! ([`bdev::IoChannel::read`] takes a [`dma::DmaBuf`] and gives it back).
//!
//! # Data path: a bdev of ours
//! Implement [`bdev_module::BdevDevice`] and [`bdev_module::register`] it, on the app thread:
//! 1. `create_channel` runs once per SPDK thread that uses the bdev; it calls
//!    [`bdev::Desc::channel`] for each bdev below and keeps the [`bdev::IoChannel`].
//! 2. `submit` gets each command as a [`bdev_module::BdevIo`], a linear value: complete it, send it
//!    on (`forward`, `forward_at`, `forward_then`), or keep it (a `VecDeque` in the channel, or
//!    `park()` to move the right of resuming it elsewhere). Dropping it ends the process.
//! 3. State for the time of the command is `BdevIo::state_mut()`: no allocation.
//! 4. `forward` handles data buffers of reads, shortage of resources (waits, in order, without
//!    allocation) and the status of the bdev below. Its completion function is a plain `fn` that gets
//!    the command, and with it device, channel and state.
//! 5. A reset means: every command under way has to complete soon. Use
//!    `io.for_each_channel(|device, channel| /* complete what is kept, Aborted */, |io, _| io.forward(..))`.
//!    Forward an abort: SPDK finds the command it is after, which was forwarded, too.
//! 6. [`bdev_module::Registration::unregister`] resolves when everything is gone. `destruct` closes
//!    what is below; the device value is dropped after that.
//!
//! Completions may run inside `submit` of the same channel (SPDK retries commands from within
//! completions), so never hold a `RefCell` borrow across `complete`, `forward` or `get_buf`.
//!
//! # Time
//! [`watchdog`] reports what keeps a reactor too long, with its stack. [`stopping`] ends the process when a stop does not.
//!
//! # Versions
//! SPDK 20.07 up to today's; all differences are in `spdk-sys/shim`. Facts about 20.07 that callers
//! meet:
//! - UUIDs: aio, uring, split, gpt, raid, delay, error and passthru bdevs get a random one at each
//!   start; malloc and null too, unless given (`save_config` writes it); nvme has the namespace's, if
//!   that has one (its UUID, not its NGUID), else a random one; lvol is stable. So the identity of a
//!   master has to come from elsewhere as well.
//! - A bdev of ours with `required_alignment_log2 > 0` has its I/O split at 64 KiB, the largest buffer
//!   the bdev layer has; also the bases do that (aio, uring), which only costs time. A read that comes
//!   without buffers can be no larger.
//! - `save_config`: first `config_json` of modules (those with examine callbacks, like ours, before
//!   nvme's), then `write_config_json` of bdevs in order of registration. So what needs a base belongs
//!   into the latter. SPDK holds its list lock meanwhile: no bdev function may be called there.
//! - examine: all modules' `examine_config`, then `examine_disk` of the module that claimed, or of all.
//!   While a bdev is registered; its RPC answers without waiting for `examine_disk`.
//! - Zero copy: passthru bdevs and partitions start a second one instead of ending the first, also in
//!   today's SPDK. So [`bdev::BdevInfo::supports`] does not count theirs, and bdevs of ours offer it
//!   only to users that are known to end what they start (module.c). Ends may come on another thread
//!   than starts, when a rate limit came or went; command.c brings the base's back to its own.
//! - Without native support the bdev layer does compare-and-write as locked read, compare and write;
//!   write zeroes as writes; unmap not at all.
//! - Each command to a stacked bdev needs two `spdk_bdev_io`. If those that come in take all there are,
//!   none can be forwarded, for ever: the pool (64 Ki by default) has to exceed the sum of queue depths.
//! - The NVMe-oF initiator blocks its thread while it connects: never to a target on the same reactor.

pub mod app;
pub mod bdev;
pub mod bdev_module;
pub mod clock;
pub mod dma;
pub mod error;
pub mod executor;
pub mod json;
pub mod load;
pub mod nvmf;
pub mod poller;
pub mod rpc;
pub mod stopping;
pub mod thread;
pub mod watchdog;
pub mod zcopy;

pub use bdev::{BdevEvent, BdevInfo, Desc, IoChannel, IoType, Part};
pub use bdev_module::{BdevDevice, BdevIo, BdevSpec, ParkedIo, Registration, Status};
pub use dma::DmaBuf;
pub use error::{Errno, IoError};
pub use executor::{LocalFuture, spawn};
pub use json::JsonWriter;
pub use poller::{PollResult, Poller};
pub use rpc::RpcError;
pub use thread::Thread;

/// Around the body of every function that C calls: a panic must not unwind into C, nor may the
/// process go on with SPDK in an unknown state.
///
/// A value whose drop ends the process, forgotten when all is well, is free of cost in the I/O path,
/// where `catch_unwind` is not.
#[inline]
fn guard<R>(what: &'static str, body: impl FnOnce() -> R) -> R {
    struct Bomb(&'static str);

    impl Drop for Bomb {
        #[cold]
        fn drop(&mut self) {
            eprintln!("presnap: panic in {}, called by SPDK; ending the process", self.0);
            std::process::abort();
        }
    }

    let bomb = Bomb(what);
    let result = body();
    std::mem::forget(bomb);
    result
}
