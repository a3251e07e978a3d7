//! The catalog's thread: order, a full queue, stop and panic.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use super::{super::catalog_thread::QUEUE_REQUESTS_MAX, *};

fn start() -> (SharedDevice, CatalogThread) {
    let shared: SharedDevice = device();
    let catalog = format(&shared, &options(false)).unwrap().catalog;
    let spawn = |body| thread::Builder::new().name("catalog".to_owned()).spawn(body);
    (shared, CatalogThread::start(catalog, spawn).unwrap())
}

fn open(volume: u32) -> CatalogRequest {
    CatalogRequest::OpenVolume { volume: VolumeId(volume) }
}

fn create(handle: &CatalogHandle) {
    handle
        .run(Box::new(|catalog| {
            catalog.unwrap().create_volume(volume_record("vol0", 100)).unwrap();
        }))
        .unwrap();
}

type Outcome = (u32, Result<CatalogReply>);

fn submit(handle: &CatalogHandle, number: u32, volume: u32, to: &Sender<Outcome>) -> bool {
    let to = to.clone();
    // A receiver that is gone is no error.
    let completion = Box::new(move |result| drop(to.send((number, result))));
    handle.submit(open(volume), completion).is_ok()
}

/// Keeps the thread busy until the sender is dropped.
fn block(handle: &CatalogHandle) -> Sender<()> {
    let (release, released): (Sender<()>, Receiver<()>) = channel();
    handle.run(Box::new(move |_| released.recv().unwrap_or(()))).unwrap();
    release
}

#[test]
fn requests_are_served_in_order_and_the_stop_closes_cleanly() {
    let (device, thread) = start();
    let handle = thread.handle();
    create(&handle);
    let (sender, receiver) = channel();
    for number in 0..20 {
        assert!(submit(&handle, number, if number == 7 { 9 } else { 1 }, &sender));
    }
    thread.stop().unwrap();
    let outcomes: Vec<Outcome> = receiver.try_iter().collect();
    assert_eq!(outcomes.len(), 20);
    for (expected, (number, result)) in (0..).zip(&outcomes) {
        assert_eq!(expected, *number);
        match number {
            7 => assert_eq!(result.as_ref().unwrap_err().kind(), ErrorKind::NotFound),
            _ => assert_eq!(*result.as_ref().unwrap(), CatalogReply::Done),
        }
    }
    let refused = handle.submit(open(1), Box::new(|_| panic!("not called"))).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Closed);
    let store = load(&device).unwrap();
    assert_eq!(store.volumes[0].state.record.operation_number.0, 19 * OPERATION_RESERVE);
}

#[test]
fn a_full_queue_gives_the_request_back() {
    let (_device, thread) = start();
    let handle = thread.handle();
    create(&handle);
    let release = block(&handle);
    let (sender, receiver) = channel();
    let mut queued = 0;
    while submit(&handle, queued, 1, &sender) {
        queued += 1;
    }
    assert!((QUEUE_REQUESTS_MAX as u32 - 2..=QUEUE_REQUESTS_MAX as u32).contains(&queued));
    let refused = handle.submit(open(5), Box::new(|_| panic!("not called"))).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Busy);
    assert!(matches!(refused.request, CatalogRequest::OpenVolume { volume: VolumeId(5) }));
    drop(release);
    thread.stop().unwrap();
    assert_eq!(receiver.try_iter().count() as u32, queued);
}

#[test]
fn a_panic_is_an_error_for_all_that_follow_and_the_store_loads_again() {
    let (device, thread) = start();
    let handle = thread.handle();
    create(&handle);
    let release = block(&handle);
    let (sender, receiver) = channel();
    assert!(submit(&handle, 0, 1, &sender));
    handle.run(Box::new(|_| panic!("a defect for the test"))).unwrap();
    assert!(submit(&handle, 1, 1, &sender));
    drop(release);
    let error = thread.stop().unwrap_err();
    assert!(error.to_string().contains("a defect for the test"), "{error}");
    let outcomes: Vec<Outcome> = receiver.try_iter().collect();
    assert!(outcomes[0].1.is_ok());
    assert_eq!(outcomes[1].1.as_ref().unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(load(&device).unwrap().volumes.len(), 1);
}

#[test]
fn a_dropped_thread_ends() {
    let (_device, thread) = start();
    let (sender, receiver) = channel::<()>();
    let handle = thread.handle();
    handle.run(Box::new(move |_| drop(sender))).unwrap();
    drop(thread);
    assert!(receiver.recv().is_err());
}

/// Found as a completion that was never called: crossbeam keeps what is sent to a bounded channel
/// between the last look of the receiver and its end.
#[test]
fn whoever_comes_too_late_is_told() {
    for round in 0..20 {
        let (_device, thread) = start();
        let handle = thread.handle();
        create(&handle);
        let submitter = thread::spawn(move || {
            let (sender, receiver) = channel();
            let mut taken = 0;
            loop {
                match handle.submit(open(1), {
                    let sender = sender.clone();
                    Box::new(move |result| drop(sender.send(result)))
                }) {
                    Ok(()) => taken += 1,
                    Err(refused) if refused.error.kind() == ErrorKind::Closed => break,
                    Err(_) => thread::yield_now(),
                }
            }
            // The completions of all that were taken are called, some perhaps in a moment.
            (0..taken).all(|_| receiver.recv_timeout(std::time::Duration::from_secs(20)).is_ok())
        });
        thread::sleep(std::time::Duration::from_micros(round * 100));
        thread.stop().unwrap();
        assert!(submitter.join().unwrap(), "a completion was not called");
    }
}

#[test]
fn a_panic_in_a_completion_does_not_leave_others_waiting() {
    let (device, thread) = start();
    let handle = thread.handle();
    create(&handle);
    let release = block(&handle);
    assert!(handle.submit(open(1), Box::new(|_| panic!("a completion's defect"))).is_ok());
    let (sender, receiver) = channel();
    assert!(submit(&handle, 1, 1, &sender));
    drop(release);
    assert!(thread.stop().unwrap_err().to_string().contains("a completion's defect"));
    assert_eq!(receiver.recv().unwrap().1.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(std::sync::Arc::strong_count(&device), 1, "the device is let go");
    assert_eq!(load(&device).unwrap().volumes.len(), 1);
}
