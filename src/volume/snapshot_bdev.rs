//! `<volume>@<snapshot>`: a snapshot as a read-only bdev.
//!
//! Once the snapshot is complete, reads go from any reactor straight to the store, with one
//! look-up in an immutable map. Until then the app thread says where each chunk is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::copier::SlotLayout;
use super::snapshots;
use crate::engine::records::SlotRef;
use crate::gate::Geometry;
use crate::spdk::bdev::{Desc, IoChannel, IoType};
use crate::spdk::bdev_module::{
    BdevDevice, BdevIo, ParkedIo, SC_WRITE_PROTECTED, SCT_GENERIC, Status,
};
use crate::spdk::dma::DmaBuf;
use crate::spdk::error::Errno;
use crate::spdk::json::JsonWriter;
use crate::spdk::thread::Thread;
use crate::store::{DamagedSlots, SlotMap};

/// NVMe status code type "media and data integrity errors".
const SCT_MEDIA: u16 = 2;
/// NVMe status code "unrecovered read error".
const SC_UNRECOVERED_READ: u16 = 0x81;

/// A snapshot as its reactors see it.
pub struct SnapshotDevice {
    /// Names the snapshot on the app thread.
    pub key: u64,
    /// Sizes of its volume.
    pub geometry: Geometry,
    /// The store.
    pub store: Desc,
    /// Where its slots are.
    pub slots: SlotLayout,
    /// Which of them are damaged.
    pub damaged: Arc<DamagedSlots>,
    /// Where each chunk is, from completion on.
    pub map: OnceLock<SlotMap>,
    /// Given up, or its store is gone: reads fail.
    pub failed: AtomicBool,
}

impl BdevDevice for SnapshotDevice {
    type Channel = IoChannel;
    /// Data that the app thread read for this command.
    type IoState = Option<DmaBuf>;

    fn io_type_supported(&self, io_type: IoType) -> bool {
        // Writes are taken in order to be refused with the right status.
        matches!(
            io_type,
            IoType::Read
                | IoType::Write
                | IoType::WriteZeroes
                | IoType::Unmap
                | IoType::Flush
                | IoType::Reset
        )
    }

    fn create_channel(&self) -> Result<IoChannel, Errno> {
        self.store.channel()
    }

    fn submit(&self, _channel: &IoChannel, io: BdevIo<Self>) {
        match io.kind() {
            IoType::Read => read(io),
            IoType::Flush | IoType::Reset => io.complete(Status::Success),
            _ => io.complete_nvme(SCT_GENERIC, SC_WRITE_PROTECTED),
        }
    }

    fn write_config_json(&self, w: &mut JsonWriter) {
        snapshots::write_config(self.key, w);
    }

    fn dump_info_json(&self, w: &mut JsonWriter) {
        snapshots::dump_info(self.key, w);
    }
}

/// A read, on the reactor it came on.
fn read(io: BdevIo<SnapshotDevice>) {
    let device = io.device();
    if device.failed.load(Ordering::Acquire) {
        return io.complete_nvme(SCT_MEDIA, SC_UNRECOVERED_READ);
    }
    let lba = io.offset_blocks();
    // The bdev layer splits reads at chunk borders (`split_on_optimal_io_boundary`).
    let chunk = device.geometry.chunk_of(lba);
    let Some(map) = device.map.get() else {
        let (key, blocks) = (device.key, io.num_blocks());
        let parked = io.park();
        Thread::app().send(move || snapshots::read_completing(key, chunk, lba, blocks, parked));
        return;
    };
    match map.get(chunk) {
        Some(SlotRef::Zero) => io.complete_zeroes(),
        // What it holds is wrong; the log has said so once.
        Some(SlotRef::Slot { slot, .. }) if device.damaged.contains(slot) => {
            io.complete_nvme(SCT_MEDIA, SC_UNRECOVERED_READ);
        }
        Some(SlotRef::Slot { slot, .. }) => {
            let offset = device.slots.block_at(slot, lba % device.geometry.chunk_lbas());
            let channel = io.channel().clone();
            io.forward_at(&channel, offset, None);
        }
        None => {
            tracing::error!(chunk = chunk.0, "a complete snapshot lacks a chunk");
            io.complete_nvme(SCT_MEDIA, SC_UNRECOVERED_READ);
        }
    }
}

/// Ends a read with data that the app thread read, or with a media error.
pub fn finish_read(parked: ParkedIo<SnapshotDevice>, data: Option<DmaBuf>) {
    parked.thread().send(move || {
        let mut io = parked.resume();
        if data.is_none() {
            return io.complete_nvme(SCT_MEDIA, SC_UNRECOVERED_READ);
        }
        *io.state_mut() = data;
        io.get_buf(|mut io, result| {
            if result.is_ok() {
                let data = io.state_mut().take().expect("given above");
                let mut rest: &[u8] = &data;
                for part in io.data_mut() {
                    let (now, later) = rest.split_at(part.len());
                    part.copy_from_slice(now);
                    rest = later;
                }
            }
            io.complete_result(result);
        });
    });
}

/// Sends a read back to its reactor: the snapshot has a map now, or has failed.
pub fn read_again(parked: ParkedIo<SnapshotDevice>) {
    parked.resume_with(read);
}
