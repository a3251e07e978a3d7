//! Exporting bdevs over NVMe-oF. All on the app thread.
//!
//! Subsystems are named, not held: anyone may delete one by RPC at any time.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use spdk_sys as sys;

use super::error::Errno;
use super::executor::{Sender, oneshot};
use super::guard;
use super::thread::Thread;

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// "TCP", "RDMA", "VFIOUSER", ...
    pub trtype: String,
    /// "IPv4", "IPv6", ...
    pub adrfam: String,
    /// Address.
    pub traddr: String,
    /// Port.
    pub trsvcid: String,
}

/// A namespace and its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The bdev behind it.
    pub bdev: String,
    /// 0 for the next free one.
    pub nsid: u32,
    /// All zero for none (SPDK then derives one).
    pub nguid: [u8; 16],
    /// All zero for none.
    pub eui64: [u8; 8],
    /// All zero for the bdev's.
    pub uuid: [u8; 16],
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Anyone.
    Any,
    /// These host NQNs.
    Only(Vec<String>),
}

/// A subsystem to create.
#[derive(Clone, Debug)]
pub struct SubsystemSpec {
    /// Its name.
    pub nqn: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Model number, at most 40 characters.
    pub model: String,
    /// At least as many as will ever be added.
    pub max_namespaces: u32,
    /// Who may connect.
    pub hosts: Hosts,
    /// Added before it starts.
    pub namespaces: Vec<Namespace>,
    /// Where it listens.
    pub listen: Vec<Address>,
}

/// A subsystem that is there.
#[derive(Clone, Debug)]
pub struct Subsystem {
    /// Its name.
    pub nqn: String,
    /// Its model number.
    pub model: String,
    /// Who may connect.
    pub hosts: Hosts,
    /// Where it listens.
    pub listen: Vec<Address>,
}

fn check_thread() {
    assert!(Thread::app().is_current(), "NVMe-oF is managed on the app thread");
}

fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// Waits for a call that reports through `psc_done_fn`, unless it fails at once.
async fn control(call: impl FnOnce(sys::psc_done_fn, *mut c_void) -> c_int) -> Result<(), Errno> {
    extern "C" fn done(ctx: *mut c_void, rc: c_int) {
        guard("nvmf", || {
            // SAFETY: the box made below; called once.
            let sender = unsafe { Box::from_raw(ctx.cast::<Sender<c_int>>()) };
            sender.send(rc);
        });
    }
    let (sender, receiver) = oneshot::<c_int>();
    let ctx = Box::into_raw(Box::new(sender));
    if let Err(error) = Errno::check(call(Some(done), ctx.cast())) {
        // SAFETY: `done` will not be called, so the box is ours.
        drop(unsafe { Box::from_raw(ctx) });
        return Err(error);
    }
    let rc = receiver.await?;
    // Some of SPDK's completions give positive codes.
    if rc == 0 { Ok(()) } else { Err(Errno(rc.abs())) }
}

fn find(nqn: &str) -> Result<*mut sys::spdk_nvmf_subsystem, Errno> {
    check_thread();
    let nqn = c_string(nqn)?;
    // SAFETY: on the app thread.
    let raw = unsafe { sys::psc_nvmf_subsystem_find(nqn.as_ptr()) };
    if raw.is_null() { Err(Errno::NOENT) } else { Ok(raw) }
}

/// Whether there is such a subsystem.
pub fn exists(nqn: &str) -> bool {
    find(nqn).is_ok()
}

/// Makes sure that the target has the transport, with SPDK's default options if it is new.
///
/// # Errors
/// `ENODEV` without target, `EPROTONOSUPPORT` when SPDK was built without the transport.
pub async fn ensure_transport(trtype: &str) -> Result<(), Errno> {
    check_thread();
    let name = c_string(&trtype.to_ascii_uppercase())?;
    // SAFETY: on the app thread.
    if unsafe { sys::psc_nvmf_have_transport(name.as_ptr()) } {
        return Ok(());
    }
    // SAFETY: on the app thread; SPDK copies the name.
    control(|done, ctx| unsafe { sys::psc_nvmf_transport_create(name.as_ptr(), done, ctx) }).await
}

/// Creates a subsystem with everything in the specification, and starts it. On failure nothing of it
/// stays.
///
/// # Errors
/// `EEXIST` when the name is taken; others as SPDK reports.
pub async fn create(spec: &SubsystemSpec) -> Result<(), Errno> {
    check_thread();
    for address in &spec.listen {
        ensure_transport(&address.trtype).await?;
    }
    let (nqn, serial) = (c_string(&spec.nqn)?, c_string(&spec.serial)?);
    let model = c_string(&spec.model)?;
    let mut raw = ptr::null_mut();
    // SAFETY: on the app thread; SPDK copies the strings.
    Errno::check(unsafe {
        sys::psc_nvmf_subsystem_create(
            nqn.as_ptr(),
            serial.as_ptr(),
            model.as_ptr(),
            spec.max_namespaces,
            &raw mut raw,
        )
    })?;
    let result = fill(spec).await;
    if result.is_err() {
        abandon(&spec.nqn).await;
    }
    result
}

/// Removes a subsystem that did not come to run. What went wrong before is what counts, so nothing
/// is reported.
async fn abandon(nqn: &str) {
    let Ok(subsystem) = find(nqn) else { return };
    // SAFETY: on the app thread, found just now. SPDK refuses to stop what never started.
    let _ =
        control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_stop(subsystem, done, ctx) }).await;
    let Ok(subsystem) = find(nqn) else { return };
    // SAFETY: on the app thread, found just now, inactive.
    let _ =
        control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_destroy(subsystem, done, ctx) }).await;
}

async fn fill(spec: &SubsystemSpec) -> Result<(), Errno> {
    let subsystem = find(&spec.nqn)?;
    match &spec.hosts {
        Hosts::Any => {
            // SAFETY: on the app thread, found just now, not started.
            Errno::check(unsafe { sys::psc_nvmf_subsystem_allow_any_host(subsystem, true) })?;
        }
        Hosts::Only(hosts) => {
            for host in hosts {
                let host = c_string(host)?;
                // SAFETY: as above; SPDK copies the name.
                Errno::check(unsafe {
                    sys::psc_nvmf_subsystem_add_host(subsystem, host.as_ptr())
                })?;
            }
        }
    }
    for namespace in &spec.namespaces {
        add_namespace(subsystem, namespace)?;
    }
    for address in &spec.listen {
        listen(&spec.nqn, address).await?;
    }
    start(&spec.nqn).await
}

fn add_namespace(
    subsystem: *mut sys::spdk_nvmf_subsystem,
    namespace: &Namespace,
) -> Result<u32, Errno> {
    let name = c_string(&namespace.bdev)?;
    let raw = sys::psc_nvmf_ns {
        bdev_name: name.as_ptr(),
        nsid: namespace.nsid,
        nguid: namespace.nguid,
        eui64: namespace.eui64,
        uuid: namespace.uuid,
    };
    let mut nsid = 0;
    // SAFETY: on the app thread, the subsystem was found just now and is not active; SPDK copies.
    Errno::check(unsafe {
        sys::psc_nvmf_subsystem_add_ns(subsystem, &raw const raw, &raw mut nsid)
    })?;
    Ok(nsid)
}

async fn listen(nqn: &str, address: &Address) -> Result<(), Errno> {
    let subsystem = find(nqn)?;
    let trtype = c_string(&address.trtype.to_ascii_uppercase())?;
    let adrfam = c_string(&address.adrfam)?;
    let (traddr, trsvcid) = (c_string(&address.traddr)?, c_string(&address.trsvcid)?);
    let raw = sys::psc_nvmf_addr {
        trtype: trtype.as_ptr(),
        adrfam: adrfam.as_ptr(),
        traddr: traddr.as_ptr(),
        trsvcid: trsvcid.as_ptr(),
    };
    control(|done, ctx| {
        // SAFETY: on the app thread, found just now; SPDK copies the address.
        unsafe { sys::psc_nvmf_subsystem_listen(subsystem, &raw const raw, done, ctx) }
    })
    .await
}

/// Starts a subsystem.
///
/// # Errors
/// `ENOENT` without such a subsystem; others as SPDK reports.
pub async fn start(nqn: &str) -> Result<(), Errno> {
    let subsystem = find(nqn)?;
    // SAFETY: on the app thread, found just now.
    control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_start(subsystem, done, ctx) }).await
}

/// Pauses a subsystem, for a change; the namespace `nsid`, if it is not 0, has no command under way then.
///
/// # Errors
/// As with [`start`].
pub async fn pause(nqn: &str, nsid: u32) -> Result<(), Errno> {
    let subsystem = find(nqn)?;
    // SAFETY: on the app thread, found just now.
    control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_pause(subsystem, nsid, done, ctx) }).await
}

/// Resumes a paused subsystem.
///
/// # Errors
/// As with [`start`].
pub async fn resume(nqn: &str) -> Result<(), Errno> {
    let subsystem = find(nqn)?;
    // SAFETY: on the app thread, found just now.
    control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_resume(subsystem, done, ctx) }).await
}

/// Removes a namespace from a running subsystem.
///
/// # Errors
/// As with [`start`]; `ENOENT` without the namespace.
pub async fn remove_ns(nqn: &str, nsid: u32) -> Result<(), Errno> {
    // Removing it closes its bdev, which must have no command under way.
    pause(nqn, nsid).await?;
    let removed = find(nqn).and_then(|subsystem| {
        // SAFETY: on the app thread, found just now, paused.
        Errno::check(unsafe { sys::psc_nvmf_subsystem_remove_ns(subsystem, nsid) })
    });
    resume(nqn).await?;
    removed
}

/// The namespaces of a subsystem: id and bdev name.
///
/// # Errors
/// `ENOENT` without such a subsystem.
pub fn namespaces(nqn: &str) -> Result<Vec<(u32, String)>, Errno> {
    let subsystem = find(nqn)?;
    let mut found = Vec::new();
    let mut nsid = 1;
    loop {
        // SAFETY: on the app thread, found just now; the name is used before anything else happens.
        let name = unsafe {
            let name = sys::psc_nvmf_subsystem_next_ns(subsystem, &raw mut nsid);
            if name.is_null() {
                return Ok(found);
            }
            CStr::from_ptr(name)
        };
        found.push((nsid, name.to_string_lossy().into_owned()));
        nsid += 1;
    }
}

/// All subsystems of the target, discovery left out.
pub fn subsystems() -> Vec<Subsystem> {
    check_thread();
    let text = |raw: *const std::ffi::c_char| {
        if raw.is_null() {
            return String::new();
        }
        // SAFETY: SPDK gives C strings that live as long as the subsystem, which nothing changes
        // during this function.
        unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
    };
    let mut found = Vec::new();
    let mut raw = ptr::null_mut();
    loop {
        // SAFETY: on the app thread; `raw` is null or was given by the call before.
        raw = unsafe { sys::psc_nvmf_subsystem_next(raw) };
        if raw.is_null() {
            return found;
        }
        // SAFETY: a subsystem given just now, on the app thread; here and below.
        let (nqn, model, any) = unsafe {
            (
                text(sys::psc_nvmf_subsystem_nqn(raw)),
                text(sys::psc_nvmf_subsystem_model(raw)),
                sys::psc_nvmf_subsystem_any_host(raw),
            )
        };
        let mut hosts = Vec::new();
        let mut host = ptr::null();
        // SAFETY: as above; the pointer is written before it is read.
        while unsafe { sys::psc_nvmf_subsystem_host(raw, hosts.len() as u32, &raw mut host) } {
            hosts.push(text(host));
        }
        let mut listen = Vec::new();
        let mut address = sys::psc_nvmf_addr::default();
        // SAFETY: as above.
        while unsafe {
            sys::psc_nvmf_subsystem_listener(raw, listen.len() as u32, &raw mut address)
        } {
            listen.push(Address {
                trtype: text(address.trtype),
                adrfam: text(address.adrfam),
                traddr: text(address.traddr),
                trsvcid: text(address.trsvcid),
            });
        }
        let hosts = if any { Hosts::Any } else { Hosts::Only(hosts) };
        found.push(Subsystem { nqn, model, hosts, listen });
    }
}

/// Disconnects all hosts of a subsystem and removes it.
///
/// # Errors
/// As with [`start`].
pub async fn destroy(nqn: &str) -> Result<(), Errno> {
    let subsystem = find(nqn)?;
    // SAFETY: on the app thread, found just now.
    control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_stop(subsystem, done, ctx) }).await?;
    let subsystem = find(nqn)?;
    // SAFETY: on the app thread, found just now, stopped.
    control(|done, ctx| unsafe { sys::psc_nvmf_subsystem_destroy(subsystem, done, ctx) }).await
}

/// From now on, Identify Namespace of our bdevs that were registered `read_only` shows that they are
/// write-protected. Process-wide; replaces SPDK's option of passing Identify through to a device.
pub fn show_write_protection() {
    // SAFETY: writes one entry of a table that SPDK reads for each admin command.
    unsafe { sys::psc_nvmf_install_identify() };
}
