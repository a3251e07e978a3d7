//! JSON-RPC methods of our own, beside SPDK's.

use std::ffi::{CString, c_char};
use std::future::Future;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use spdk_sys as sys;

use super::error::Errno;
use super::executor::{self, LocalFuture};
use super::guard;

/// JSON-RPC's own code for bad parameters.
pub const INVALID_PARAMS: i32 = -32602;
/// JSON-RPC's own code for internal errors.
pub const INTERNAL_ERROR: i32 = -32603;

/// How long the app's shutdown waits for answers under way.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// SPDK's convention: negative errno, or one of JSON-RPC's codes.
    pub code: i32,
    /// For people: names the object and the remedy.
    pub message: String,
}

impl RpcError {
    /// With an error number.
    pub fn errno(errno: Errno, message: impl Into<String>) -> Self {
        Self { code: -errno.0, message: message.into() }
    }

    /// About the parameters.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self { code: INVALID_PARAMS, message: message.into() }
    }
}

type Handler = Arc<dyn Fn(Value) -> LocalFuture<Result<Value, RpcError>> + Send + Sync>;

static HANDLERS: Mutex<Vec<Handler>> = Mutex::new(Vec::new());
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicBool = AtomicBool::new(false);

fn handlers() -> MutexGuard<'static, Vec<Handler>> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a method, before [`super::app::run`]. The handler runs on the app thread; parameters
/// are a JSON object (empty when the client gave none). It works in the `config` lists of a JSON
/// configuration as well: SPDK loads those by calling methods, one after the other.
///
/// # Panics
/// With more methods than there are slots, or a zero byte in the name.
pub fn register<F, Fut>(method: &str, handler: F)
where
    F: Fn(Value) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Value, RpcError>> + 'static,
{
    let name = CString::new(method).expect("no zero byte in a method's name");
    let mut handlers = handlers();
    let slot = u32::try_from(handlers.len()).expect("few");
    // SAFETY: SPDK copies the name; the slot is answered by psr_rpc().
    let rc = unsafe { sys::psc_rpc_register(name.as_ptr(), slot, false, true) };
    assert!(rc == 0, "PSC_RPC_SLOTS_MAX is too small for {method}");
    handlers.push(Arc::new(move |params| Box::pin(handler(params))));
}

/// The parameters as a struct; unknown members are for its `serde(deny_unknown_fields)` to refuse.
///
/// # Errors
/// `INVALID_PARAMS` saying what is wrong.
pub fn params<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    serde_json::from_value(params).map_err(|error| RpcError::invalid_params(error.to_string()))
}

/// Answers exactly once: dropped without an answer, it reports an internal error.
struct Responder(Option<NonNull<sys::spdk_jsonrpc_request>>);

impl Responder {
    fn new(request: *mut sys::spdk_jsonrpc_request) -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self(Some(NonNull::new(request).expect("a request")))
    }

    fn take(&mut self) -> Option<*mut sys::spdk_jsonrpc_request> {
        let request = self.0.take()?;
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
        // After the server is closed, 20.07 has freed the connection that the request points to.
        (!CLOSED.load(Ordering::Relaxed)).then_some(request.as_ptr())
    }

    fn answer(mut self, result: &Result<Value, RpcError>) {
        let Some(request) = self.take() else { return };
        match result {
            Ok(value) => {
                let text = value.to_string();
                // SAFETY: answered once; SPDK copies the text.
                unsafe {
                    sys::psc_rpc_reply_result(request, text.as_ptr().cast(), text.len());
                }
            }
            Err(error) => reply_error(request, error.code, &error.message),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(request) = self.take() {
            reply_error(request, INTERNAL_ERROR, "The request was dropped without an answer");
        }
    }
}

fn reply_error(request: *mut sys::spdk_jsonrpc_request, code: i32, message: &str) {
    let message = CString::new(message.replace('\0', " ")).expect("zero bytes replaced");
    // SAFETY: answered once (Responder); SPDK copies the text.
    unsafe { sys::psc_rpc_reply_error(request, code, message.as_ptr()) };
}

pub(super) extern "C" fn psr_rpc(
    slot: u32,
    request: *mut sys::spdk_jsonrpc_request,
    text: *const c_char,
    len: usize,
) {
    guard("rpc", || {
        let responder = Responder::new(request);
        let params = if text.is_null() {
            Ok(Value::Object(serde_json::Map::new()))
        } else {
            // SAFETY: C gives pointer and length of one buffer, valid during this call.
            serde_json::from_slice(unsafe { slice::from_raw_parts(text.cast::<u8>(), len) })
        };
        let handler = handlers().get(slot as usize).map(Arc::clone);
        let (params, handler) = match (params, handler) {
            (Ok(params), Some(handler)) => (params, handler),
            (Err(error), _) => {
                let error = RpcError::invalid_params(error.to_string());
                return responder.answer(&Err(error));
            }
            (Ok(_), None) => return,
        };
        executor::spawn(async move {
            let result = handler(params).await;
            responder.answer(&result);
        })
        .detach();
    });
}

/// Waits until all answers are out, and gives up on those that take too long.
pub(super) async fn drain() {
    let start = Instant::now();
    while UNDER_WAY.load(Ordering::Relaxed) > 0 {
        if start.elapsed() > DRAIN_TIME_MAX {
            tracing::warn!("RPC answers still under way at shutdown are given up");
            break;
        }
        executor::sleep(DRAIN_POLL).await;
    }
    // Let SPDK's own poller write out what was answered.
    executor::sleep(DRAIN_POLL * 20).await;
    CLOSED.store(true, Ordering::Relaxed);
}
