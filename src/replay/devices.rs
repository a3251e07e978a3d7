//! Modelled devices: how long reads, writes and copies take, and how they wait for one another.

use serde::Serialize;

/// How fast a device is. The defaults are those of a middling data-centre NVMe drive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DeviceSpeed {
    /// Time of a small read, in microseconds.
    pub read_us: u64,
    /// Time of a small write, in microseconds; writes end in the device's memory.
    pub write_us: u64,
    /// Bytes moved per microsecond (MB/s), all commands together.
    pub bytes_per_us: u64,
    /// Time of a flush, in microseconds.
    pub flush_us: u64,
}

impl Default for DeviceSpeed {
    fn default() -> Self {
        Self { read_us: 80, write_us: 20, bytes_per_us: 2000, flush_us: 500 }
    }
}

/// A device whose commands share its bandwidth and are served in the order they come.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    speed: DeviceSpeed,
    /// When all bytes asked for so far are moved, in nanoseconds.
    busy_until_ns: u64,
}

impl Device {
    /// An idle device.
    pub fn new(speed: DeviceSpeed) -> Self {
        Self { speed, busy_until_ns: 0 }
    }

    fn moved(&mut self, now_us: u64, bytes: u64) -> u64 {
        let start_ns = self.busy_until_ns.max(now_us * 1000);
        self.busy_until_ns = start_ns + bytes * 1000 / self.speed.bytes_per_us.max(1);
        self.busy_until_ns.div_ceil(1000)
    }

    /// When a read of `bytes` that begins at `now_us` ends.
    pub fn read(&mut self, now_us: u64, bytes: u64) -> u64 {
        self.moved(now_us, bytes) + self.speed.read_us
    }

    /// When a write of `bytes` that begins at `now_us` ends.
    pub fn write(&mut self, now_us: u64, bytes: u64) -> u64 {
        self.moved(now_us, bytes) + self.speed.write_us
    }

    /// When a flush that begins at `now_us` ends.
    pub fn flush(&mut self, now_us: u64) -> u64 {
        self.moved(now_us, 0) + self.speed.flush_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_wait_for_one_another() {
        let mut device = Device::new(DeviceSpeed::default());
        assert_eq!(device.read(1000, 4000), 1082);
        assert_eq!(device.write(1000, 4000), 1024, "behind the read's bytes, not its time");
        assert_eq!(device.write(1000, 2_000_000), 2024);
        assert_eq!(device.read(1000, 2000), 2085, "1 ms of queue");
        assert_eq!(device.flush(10_000), 10_500);
    }
}
