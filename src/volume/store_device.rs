//! A store's bdev as the catalog thread sees it: blocking reads and writes that the app thread
//! carries out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;

use crate::spdk::bdev::IoChannel;
use crate::spdk::dma::DmaBuf;
use crate::spdk::error::IoError;
use crate::spdk::thread::Thread;
use crate::store::Device;

/// Bytes per bdev command; longer requests are cut.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Alignment of buffers, for devices that want pages.
const BUFFER_ALIGN: usize = 4096;

thread_local! {
    /// Channels of open stores, on the app thread.
    static CHANNELS: RefCell<HashMap<u64, IoChannel>> = RefCell::default();
}

/// A bdev for blocking use from an OS thread that is no SPDK thread.
#[derive(Debug)]
pub struct StoreDevice {
    key: u64,
    block_bytes: u32,
    size_bytes: u64,
    flushes: bool,
}

impl StoreDevice {
    /// Lends a channel of the app thread to the catalog thread, until the device is dropped.
    /// `key` is unique for the process's life. On the app thread.
    pub fn new(key: u64, channel: IoChannel) -> Self {
        assert!(Thread::app().is_current(), "stores are opened on the app thread");
        let info = channel.desc().info();
        let before = CHANNELS.with_borrow_mut(|channels| channels.insert(key, channel));
        assert!(before.is_none(), "a store's key is used once");
        Self {
            key,
            block_bytes: info.block_bytes,
            size_bytes: info.block_count * u64::from(info.block_bytes),
            flushes: info.supports(crate::spdk::bdev::IoType::Flush),
        }
    }

    /// Takes the channel back; requests fail from then on. On the app thread.
    pub fn disconnect(key: u64) {
        // Dropped outside the borrow: closing may call back.
        let channel = CHANNELS.with_borrow_mut(|channels| channels.remove(&key));
        drop(channel);
    }

    fn run<T, F>(
        &self,
        what: &str,
        make: impl FnOnce(IoChannel) -> F + Send + 'static,
    ) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, IoError>> + 'static,
    {
        let key = self.key;
        let result = Thread::app().block_on(move || async move {
            let channel = CHANNELS.with_borrow(|channels| channels.get(&key).cloned());
            match channel {
                Some(channel) => make(channel).await.map_err(|error| error.to_string()),
                None => Err("its device is gone".to_owned()),
            }
        });
        match result {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(io::Error::other(format!("{what} the store: {error}"))),
            None => Err(io::Error::other(format!("{what} the store: the target is stopping"))),
        }
    }
}

fn buffer(len: usize) -> io::Result<DmaBuf> {
    DmaBuf::zeroed(len, BUFFER_ALIGN)
        .map_err(|error| io::Error::other(format!("no {len} bytes of DMA memory: {error}")))
}

impl Device for StoreDevice {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        let mut at = offset / block_bytes;
        for piece in out.chunks_mut(REQUEST_BYTES_MAX) {
            let (blocks, buf) = (piece.len() as u64 / block_bytes, buffer(piece.len())?);
            let read = self.run("reading", move |channel| async move {
                let (buf, result) = channel.read(buf, at, blocks).await;
                result.map(|()| buf)
            })?;
            piece.copy_from_slice(&read);
            at += blocks;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        let mut at = offset / block_bytes;
        for piece in data.chunks(REQUEST_BYTES_MAX) {
            let (blocks, mut buf) = (piece.len() as u64 / block_bytes, buffer(piece.len())?);
            buf.copy_from_slice(piece);
            self.run("writing to", move |channel| async move {
                channel.write(buf, at, blocks).await.1
            })?;
            at += blocks;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(()); // the device has no volatile cache to flush
        }
        self.run("flushing", |channel| async move { channel.flush().await })
    }
}
