//! The CPU's time stamp counter.

use std::sync::OnceLock;
use std::time::Duration;

use spdk_sys as sys;

/// Ticks since some moment in the past.
pub fn now_ticks() -> u64 {
    // SAFETY: reads the time stamp counter.
    unsafe { sys::psc_ticks() }
}

/// Nanoseconds that this OS thread has been on a CPU: what the system gave to others is not in it.
pub fn thread_cpu_ns() -> u64 {
    // SAFETY: reads the thread's clock.
    unsafe { sys::psc_os_thread_cpu_ns() }
}

/// Ticks per second, constant.
pub fn ticks_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    // SAFETY: reads a variable that the environment wrote at start.
    *HZ.get_or_init(|| unsafe { sys::psc_ticks_hz() })
}

/// The length of a number of ticks.
pub fn ticks_to_duration(ticks: u64) -> Duration {
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_hz().max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The length of a number of ticks in microseconds.
pub fn ticks_to_us(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(ticks_hz().max(1))) as u64
}
