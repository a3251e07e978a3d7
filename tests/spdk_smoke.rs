//! The wrappers of `src/spdk` on the real SPDK, in this process: a pass-through bdev on a malloc bdev,
//! commands through both, RPC, shutdown. Needs root and 256 MiB of free hugepages.

#[cfg(not(feature = "spdk"))]
fn main() {}

#[cfg(feature = "spdk")]
fn main() {
    smoke::main();
}

#[cfg(feature = "spdk")]
mod smoke {
    #![allow(clippy::unwrap_used, clippy::wildcard_imports, reason = "a test")]

    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use presnap::spdk::app::{self, AppOptions};
    use presnap::spdk::bdev_module::{self, SC_WRITE_PROTECTED, SCT_GENERIC};
    use presnap::spdk::executor::{self, join_all, oneshot, sleep, timeout};
    use presnap::spdk::thread::spawn_os_thread;
    use presnap::spdk::*;
    use serde_json::{Value, json};

    /// Passes everything on; can keep commands, and refuse to write.
    #[derive(Default)]
    struct Pass {
        base: Mutex<Option<Desc>>,
        read_only: bool,
        /// For measuring: nothing counted.
        quick: bool,
        completed: AtomicU64,
        destructed: AtomicU64,
    }

    const NQN: &str = "nqn.2024-01.io.presnap:smoke";
    /// Environment variable of the child process: the port to connect to.
    const INITIATOR: &str = "PRESNAP_SMOKE_INITIATOR";

    /// Writes at once.
    const MANY: u64 = 900;

    struct PassChannel {
        base: IoChannel,
        keep: Cell<bool>,
        kept: RefCell<VecDeque<BdevIo<Pass>>>,
    }

    #[derive(Default)]
    struct PassIo {
        first_block: u64,
        marks: u32,
    }

    impl Pass {
        fn base(&self) -> Desc {
            self.base.lock().unwrap().clone().expect("open until destructed")
        }
    }

    impl BdevDevice for Pass {
        type Channel = PassChannel;
        type IoState = PassIo;

        fn io_type_supported(&self, io_type: IoType) -> bool {
            self.base().info().supports(io_type)
        }

        fn create_channel(&self) -> Result<PassChannel, Errno> {
            let base = self.base().channel()?;
            Ok(PassChannel { base, keep: Cell::default(), kept: RefCell::default() })
        }

        fn submit(&self, channel: &PassChannel, mut io: BdevIo<Self>) {
            if self.read_only && io.kind().modifies() {
                return io.complete_nvme(SCT_GENERIC, SC_WRITE_PROTECTED);
            }
            if self.quick {
                io.state_mut().first_block = io.offset_blocks();
                return io.forward(
                    &channel.base,
                    Some(|io, _| assert_eq!(io.state().first_block, io.offset_blocks())),
                );
            }
            if io.kind() == IoType::Reset {
                return io.for_each_channel(
                    |_, channel| {
                        let kept = channel.kept.take();
                        for io in kept {
                            io.complete(Status::Aborted);
                        }
                    },
                    |io, _| {
                        io.forward_via(|channel| &channel.base, |_, _| {});
                    },
                );
            }
            if channel.keep.get() && io.kind() == IoType::Write {
                channel.kept.borrow_mut().push_back(io);
                return;
            }
            io.state_mut().first_block = io.offset_blocks();
            io.state_mut().marks += 1;
            io.forward(
                &channel.base,
                Some(|io, result| {
                    let first = io.offset_blocks();
                    let (device, _, state) = io.parts();
                    assert_eq!((state.first_block, state.marks), (first, 1));
                    if result.is_ok() {
                        device.completed.fetch_add(1, Ordering::Relaxed);
                    }
                }),
            );
        }

        fn dump_info_json(&self, w: &mut JsonWriter) {
            w.member("pass", &json!({ "completed": self.completed.load(Ordering::Relaxed) }));
        }

        fn write_config_json(&self, w: &mut JsonWriter) {
            w.call("smoke_pass_create", &json!({ "name": "Pass0" }));
        }

        fn destruct(self: Arc<Self>) -> LocalFuture<()> {
            Box::pin(async move {
                sleep(Duration::from_millis(1)).await;
                // Closed here, not when the last Arc of the device goes.
                self.base.lock().unwrap().take();
                self.destructed.fetch_add(1, Ordering::Relaxed);
            })
        }
    }

    fn pass(name: &str, base: &str, read_only: bool) -> Registration<Pass> {
        pass_with(name, base, read_only, |_| {})
    }

    fn pass_with(
        name: &str,
        base: &str,
        read_only: bool,
        on_event: impl Fn(BdevEvent) + 'static,
    ) -> Registration<Pass> {
        let base = Desc::open(base, !read_only, on_event).expect("opened");
        if !read_only {
            base.claim().expect("claimed");
        }
        let info = base.info();
        let quick = name == "OurPass";
        let device = Arc::new(Pass { read_only, quick, ..Default::default() });
        *device.base.lock().unwrap() = Some(base);
        let spec = BdevSpec {
            name: name.to_owned(),
            product_name: c"smoke pass-through",
            uuid: uuid::Uuid::new_v5(&info.uuid, name.as_bytes()),
            block_bytes: info.block_bytes,
            block_count: info.block_count,
            read_only,
            ..Default::default()
        };
        bdev_module::register(&spec, device).expect("registered")
    }

    fn filled(len: usize, byte: u8) -> DmaBuf {
        let mut buf = DmaBuf::zeroed(len, 4096).expect("memory");
        buf.fill(byte);
        buf
    }

    async fn commands(pass: &Registration<Pass>) {
        let desc = Desc::open("Pass0", true, |_| {}).expect("opened");
        let ch = desc.channel().expect("channel");
        let master = Desc::open("Malloc0", false, |_| {}).expect("opened for reading");
        let master_ch = master.channel().expect("channel");
        assert_eq!(Desc::open("Malloc0", true, |_| {}).err(), Some(Errno::PERM), "claimed");
        assert_eq!(Desc::open("nothing", true, |_| {}).err(), Some(Errno::NODEV));

        let (buf, result) = ch.write(filled(64 * 4096, 0xA5), 8, 64).await;
        result.expect("written");
        drop(buf);
        let (buf, result) = master_ch.read(filled(64 * 4096, 0), 8, 64).await;
        result.expect("read");
        assert!(buf.iter().all(|&byte| byte == 0xA5));
        ch.write_zeroes(8, 16).await.expect("zeroed");
        ch.unmap(24, 8).await.expect("unmapped");
        ch.flush().await.expect("flushed");
        let parts = [
            Part { buf_offset: 0, offset_blocks: 8, num_blocks: 1 },
            Part { buf_offset: 4096, offset_blocks: 40, num_blocks: 1 },
        ];
        let (buf, result) = ch.read_parts(filled(8192, 0xFF), &parts).await;
        result.expect("read");
        assert!(buf[..4096].iter().all(|&byte| byte == 0));
        assert!(buf[4096..].iter().all(|&byte| byte == 0xA5));

        // Beyond the end: refused by the bdev layer, before it is submitted.
        let (_, result) = ch.read(filled(4096, 0), desc.info().block_count, 1).await;
        assert_eq!(result.expect_err("beyond").errno(), Some(Errno::INVAL));

        // More commands than there are spdk_bdev_io (the configuration has 1024, and the cache of the
        // thread), twice per write through ours: the forwarded ones have to wait. (If those that come
        // in alone used up the pool, the forwarded ones would wait for ever; so it is with any bdev
        // on top of another.)
        let start = Instant::now();
        let many = (0..MANY).map(|i| {
            let ch = ch.clone();
            async move {
                let (_, result) =
                    ch.write(filled(4096, u8::try_from(i % 251).unwrap()), i, 1).await;
                result
            }
        });
        for result in join_all(many).await {
            result.expect("written");
        }
        println!("{MANY} writes at once: {:?}", start.elapsed());
        // And directly: here ours wait.
        let many = (0..4 * MANY).map(|i| {
            let ch = master_ch.clone();
            async move {
                let (buf, result) = ch.read(filled(4096, 0), i % MANY, 1).await;
                result.expect("read");
                assert!(buf.iter().all(|&byte| u64::from(byte) == i % MANY % 251), "block {i}");
            }
        });
        join_all(many).await;

        // A future dropped while its command is under way.
        {
            let mut read = Box::pin(ch.read(filled(4096, 0), 0, 1));
            assert!(timeout(Duration::ZERO, std::future::pending::<()>()).await.is_none());
            std::future::poll_fn(|cx| {
                let _ = read.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
        }

        // Commands that are kept are aborted by a reset.
        pass.for_each_channel(|_, channel| channel.keep.set(true)).await.expect("there");
        let kept = executor::spawn({
            let ch = ch.clone();
            async move { ch.write(filled(4096, 1), 0, 1).await.1 }
        });
        sleep(Duration::from_millis(2)).await;
        ch.reset().await.expect("reset");
        assert!(kept.await.expect_err("aborted").is_aborted());

        // Or resumed by another OS thread; data and status arrive all the same.
        let kept = executor::spawn({
            let ch = ch.clone();
            async move { ch.write(filled(4096, 0x77), 5, 1).await.1 }
        });
        sleep(Duration::from_millis(2)).await;
        pass.for_each_channel(|_, channel| {
            channel.keep.set(false);
            for io in channel.kept.take() {
                let parked = io.park();
                let home = Thread::current();
                assert_eq!(parked.thread(), home);
                let other = spawn_os_thread("resume", None, move || {
                    parked.resume_with(|io| {
                        let base = io.channel().base.clone();
                        let offset = io.offset_blocks();
                        io.forward_then(&base, offset, BdevIo::complete_result);
                    });
                });
                other.expect("started").join().expect("joined");
            }
        })
        .await
        .expect("there");
        kept.await.expect("written");
        let (buf, result) = master_ch.read(filled(4096, 0), 5, 1).await;
        result.expect("read");
        assert!(buf.iter().all(|&byte| byte == 0x77));
        assert!(pass.device().completed.load(Ordering::Relaxed) > MANY);
    }

    async fn read_only() {
        let snap = pass("Malloc1@snap", "Malloc1", true);
        let desc = Desc::open("Malloc1@snap", true, |_| {}).expect("opened");
        let ch = desc.channel().expect("channel");
        let (_, result) = ch.write(filled(4096, 1), 0, 1).await;
        let error = result.expect_err("write-protected");
        assert_eq!(error.nvme(), (SCT_GENERIC, SC_WRITE_PROTECTED));
        // The status of a base goes up unchanged.
        {
            let top = pass("Top", "Malloc1@snap", false);
            let top_desc = Desc::open("Top", true, |_| {}).expect("opened");
            let top_ch = top_desc.channel().expect("channel");
            let (_, result) = top_ch.write(filled(4096, 1), 0, 1).await;
            let error = result.expect_err("write-protected");
            assert_eq!(error.nvme(), (SCT_GENERIC, SC_WRITE_PROTECTED));
            drop((top_ch, top_desc));
            top.unregister().await;
        }

        nvmf::show_write_protection();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port().to_string();
        drop(listener);
        let spec = nvmf::SubsystemSpec {
            nqn: NQN.to_owned(),
            serial: "SMOKE0001".to_owned(),
            model: "presnap snapshot".to_owned(),
            max_namespaces: 4,
            hosts: nvmf::Hosts::Any,
            namespaces: vec![nvmf::Namespace {
                bdev: "Malloc1@snap".to_owned(),
                nsid: 1,
                nguid: [7; 16],
                eui64: [0; 8],
                uuid: desc.info().uuid.into_bytes(),
            }],
            listen: vec![nvmf::Address {
                trtype: "TCP".to_owned(),
                adrfam: "IPv4".to_owned(),
                traddr: "127.0.0.1".to_owned(),
                trsvcid: port.clone(),
            }],
        };
        drop((ch, desc));
        nvmf::create(&spec).await.expect("exported");
        assert_eq!(nvmf::create(&spec).await, Err(Errno::EXIST));
        assert_eq!(nvmf::namespaces(&spec.nqn), Ok(vec![(1, "Malloc1@snap".to_owned())]));

        // The initiator of 20.07 blocks its thread while it connects, so it has to be another process.
        let (sender, receiver) = oneshot();
        let child = spawn_os_thread("initiator", None, move || {
            let this = std::env::current_exe().expect("known");
            sender.send(std::process::Command::new(this).env(INITIATOR, port).status());
        });
        let status = receiver.await.expect("waited for").expect("started");
        child.expect("started").join().expect("joined");
        assert!(status.success(), "initiator: {status}");
        nvmf::destroy(&spec.nqn).await.expect("unexported");
        assert!(!nvmf::exists(&spec.nqn));
        snap.unregister().await;
    }

    /// In the child process.
    async fn initiator() {
        let params = json!({
            "name": "N", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": std::env::var(INITIATOR).expect("the port"), "subnqn": NQN,
        });
        let reply = rpc_off_thread("bdev_nvme_attach_controller", params).await;
        assert_eq!(reply["result"], json!(["Nn1"]), "{reply}");
        check_identify(1, true).await;
        {
            let remote = Desc::open("Nn1", true, |_| {}).expect("opened");
            let ch = remote.channel().expect("channel");
            let (_, result) = ch.write(filled(4096, 1), 0, 1).await;
            let error = result.expect_err("write-protected");
            assert_eq!(error.nvme(), (SCT_GENERIC, SC_WRITE_PROTECTED), "over NVMe/TCP");
            let (_, result) = ch.read(filled(8 * 4096, 1), 0, 8).await;
            result.expect("read over NVMe/TCP");
        }
        let reply = rpc_off_thread("bdev_nvme_detach_controller", json!({ "name": "N" })).await;
        assert_eq!(reply["result"], json!(true), "{reply}");
        // As a service manager would.
        let pid = std::process::id().to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("sent");
    }

    /// Identify Namespace over the wire: byte 99 is NSATTR.
    async fn check_identify(nsid: u32, protected: bool) {
        let mut cmd = [0u8; 64];
        cmd[0] = 0x06;
        cmd[4..8].copy_from_slice(&nsid.to_le_bytes());
        let reply = rpc_off_thread(
            "bdev_nvme_send_cmd",
            json!({
                "name": "N", "cmd_type": "admin", "data_direction": "c2h", "data_len": 4096,
                "cmdbuf": base64url(&cmd),
            }),
        )
        .await;
        let data = reply["result"]["data"].as_str().unwrap_or_else(|| panic!("{reply}"));
        let data = base64url_decode(data);
        assert_eq!(data.len(), 4096);
        assert_eq!(data[99] & 1 == 1, protected, "write-protect attribute");
        assert_eq!(&data[104..120], &[7; 16], "NGUID");
        assert_eq!(u64::from_le_bytes(data[..8].try_into().unwrap()), 2048, "size in blocks");
    }

    const BASE64URL: &[u8; 64] =
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    fn base64url(data: &[u8]) -> String {
        let mut text = String::new();
        for chunk in data.chunks(3) {
            let mut group = [0; 3];
            group[..chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            for i in 0..4 {
                if i <= chunk.len() {
                    text.push(char::from(BASE64URL[(bits >> (18 - 6 * i) & 63) as usize]));
                } else {
                    text.push('=');
                }
            }
        }
        text
    }

    fn base64url_decode(text: &str) -> Vec<u8> {
        let mut data = Vec::new();
        let (mut bits, mut count) = (0u32, 0);
        for byte in text.bytes().filter(|&byte| byte != b'=') {
            let value = BASE64URL.iter().position(|&c| c == byte).expect("base64url");
            bits = bits << 6 | u32::try_from(value).unwrap();
            count += 6;
            if count >= 8 {
                count -= 8;
                data.push((bits >> count & 0xff) as u8);
            }
        }
        data
    }

    async fn threads_and_time() {
        let (sender, receiver) = oneshot();
        let home = Thread::current();
        let worker = spawn_os_thread("worker", None, move || {
            assert!(Thread::try_current().is_none());
            let name = home.block_on(|| async { Thread::current().name() });
            sender.send(name);
        })
        .expect("started");
        assert_eq!(receiver.await, Ok(Some(home.name())));
        worker.join().expect("joined");

        let start = Instant::now();
        sleep(Duration::from_millis(20)).await;
        assert!(start.elapsed() >= Duration::from_millis(20));
        let (sender, receiver) = oneshot::<()>();
        drop(sender);
        assert_eq!(receiver.await, Err(Errno::CANCELED));

        // A poller that drops itself.
        let (sender, receiver) = oneshot();
        let slot = Rc::new(RefCell::new(None));
        let mut sender = Some(sender);
        let own = Rc::clone(&slot);
        *slot.borrow_mut() = Some(Poller::register(Duration::ZERO, move || {
            own.borrow_mut().take();
            if let Some(sender) = sender.take() {
                sender.send(());
            }
            PollResult::Busy
        }));
        receiver.await.expect("polled");
    }

    fn rpc_call(socket: &Path, method: &str, params: &Value) -> Value {
        let mut stream = UnixStream::connect(socket).expect("connected");
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        stream.write_all(request.to_string().as_bytes()).expect("sent");
        let mut text = Vec::new();
        loop {
            let mut part = vec![0; 65536];
            let len = stream.read(&mut part).expect("received");
            assert!(len > 0, "closed after {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&part[..len]);
            if let Ok(reply) = serde_json::from_slice(&text) {
                return reply;
            }
        }
    }

    async fn rpc_off_thread(method: &'static str, params: Value) -> Value {
        let (sender, receiver) = oneshot();
        let worker = spawn_os_thread("rpc client", None, move || {
            sender.send(rpc_call(&socket(), method, &params));
        });
        let reply = receiver.await.expect("answered");
        worker.expect("started").join().expect("joined");
        reply
    }

    fn socket() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("presnap-smoke-{}.sock", std::process::id()))
    }

    async fn rpc_methods() {
        let mode = std::fs::metadata(socket()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let reply = rpc_off_thread("smoke_echo", json!({ "text": "hä\"\\" })).await;
        assert_eq!(reply["result"], json!({ "text": "hä\"\\" }));
        let reply = rpc_off_thread("smoke_echo", json!({ "fail": true })).await;
        assert_eq!(reply["error"], json!({ "code": -16, "message": "told to" }));
        let reply = rpc_off_thread("bdev_get_bdevs", json!({ "name": "Pass0" })).await;
        let info = &reply["result"][0];
        assert!(info["driver_specific"]["pass"]["completed"].as_u64() > Some(0), "{reply}");
        let reply = rpc_off_thread("framework_get_config", json!({ "name": "bdev" })).await;
        let calls = reply["result"].as_array().expect("calls");
        assert!(calls.iter().any(|call| call["method"] == "smoke_pass_create"), "{reply}");
    }

    /// `PRESNAP_SMOKE_LOAD=<seconds>`: what the layer costs, beside SPDK's own passthru.
    async fn load() {
        let Ok(seconds) = std::env::var("PRESNAP_SMOKE_LOAD") else { return };
        let duration = Duration::from_secs_f64(seconds.parse().expect("seconds"));
        for (method, params) in [
            (
                "bdev_null_create",
                json!({"name": "Null0", "num_blocks": 1 << 24, "block_size": 4096}),
            ),
            (
                "bdev_null_create",
                json!({"name": "Null1", "num_blocks": 1 << 24, "block_size": 4096}),
            ),
            (
                "bdev_null_create",
                json!({"name": "Null2", "num_blocks": 1 << 24, "block_size": 4096}),
            ),
            ("bdev_passthru_create", json!({"name": "SpdkPass", "base_bdev_name": "Null1"})),
        ] {
            let reply = rpc_off_thread(method, params).await;
            assert!(reply["error"].is_null(), "{reply}");
        }
        let ours = pass("OurPass", "Null2", false);
        for round in 0..5 {
            for name in ["Null0", "SpdkPass", "OurPass"] {
                let desc = Desc::open(name, true, |_| {}).expect("opened");
                let ch = desc.channel().expect("channel");
                let spec = load::LoadSpec {
                    queue_depth: 64,
                    io_blocks: 1,
                    write_percent: 50,
                    first_block: 0,
                    span_blocks: 1 << 24,
                    duration,
                    seed: round + 1,
                };
                let result = load::run(&ch, &spec).await.expect("run");
                assert_eq!(result.errors, 0);
                println!(
                    "load {round} {name:>8}: {:>9.0} IOPS, {:.1} ns each, p50 {} p99 {} ns",
                    result.iops(),
                    1e9 / result.iops(),
                    result.latency_ns.value_at_quantile(0.5),
                    result.latency_ns.value_at_quantile(0.99)
                );
            }
        }
        ours.unregister().await;
    }

    /// Load from all reactors while the base is pulled out.
    async fn hot_remove() {
        let params = json!({ "name": "Malloc2", "num_blocks": 4096, "block_size": 4096 });
        let reply = rpc_off_thread("bdev_malloc_create", params).await;
        assert!(reply["error"].is_null(), "{reply}");
        let slot: Rc<RefCell<Option<Rc<Registration<Pass>>>>> = Rc::default();
        let events = Rc::clone(&slot);
        let registration = Rc::new(pass_with("Pass2", "Malloc2", false, move |event| {
            assert_eq!(event, BdevEvent::Remove);
            let registration = events.borrow_mut().take().expect("registered");
            executor::spawn(async move { registration.unregister().await }).detach();
        }));
        *slot.borrow_mut() = Some(Rc::clone(&registration));
        let gone = registration.gone();
        drop(registration);

        let threads = thread::all().await;
        println!("threads: {threads:?}");
        let mut loads = Vec::new();
        let under_way = Arc::new(AtomicU64::new(0));
        for thread in threads {
            let under_way = Arc::clone(&under_way);
            loads.push(executor::spawn_on(thread, move || async move {
                // Each has a descriptor of its own, closed on its own thread.
                let removed = Rc::new(Cell::new(false));
                let told = Rc::clone(&removed);
                let desc = Desc::open("Pass2", true, move |_| told.set(true)).expect("opened");
                let ch = desc.channel().expect("channel");
                let mut done = 0;
                while !removed.get() {
                    let spec = load::LoadSpec {
                        queue_depth: 32,
                        io_blocks: 1,
                        write_percent: 50,
                        first_block: 0,
                        span_blocks: 4096,
                        duration: Duration::from_millis(5),
                        seed: 5,
                    };
                    let result = load::run(&ch, &spec).await.expect("run");
                    let more = result.reads + result.writes;
                    if done == 0 && more > 0 {
                        under_way.fetch_add(1, Ordering::Relaxed);
                    }
                    done += more;
                }
                done
            }));
        }
        let all_under_way = async {
            while under_way.load(Ordering::Relaxed) < loads.len() as u64 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(30), all_under_way).await.expect("in time");
        let reply = rpc_off_thread("bdev_malloc_delete", json!({ "name": "Malloc2" })).await;
        assert_eq!(reply["result"], json!(true), "{reply}");
        for load in loads {
            assert!(load.await.expect("finished") > 0);
        }
        timeout(Duration::from_secs(5), gone).await.expect("in time").expect("gone");
        assert!(bdev::find("Pass2").is_none() && bdev::find("Malloc2").is_none());
    }

    async fn all() {
        assert_eq!(bdev::find("Configured").map(|info| info.module_name), None);
        let malloc = bdev::find("Malloc0").expect("configured");
        assert_eq!((malloc.block_bytes, malloc.block_count), (4096, 4096));
        println!("SPDK {}: {malloc:?}", app::spdk_version_string());
        threads_and_time().await;
        let pass0 = pass("Pass0", "Malloc0", false);
        assert_eq!(bdev::find("Malloc0").expect("there").claimed_by.as_deref(), Some("presnap"));
        commands(&pass0).await;
        rpc_methods().await;
        read_only().await;
        hot_remove().await;
        load().await;

        let device = Arc::clone(pass0.device());
        pass0.unregister().await;
        assert!(pass0.is_gone() && bdev::find("Pass0").is_none());
        assert_eq!(device.destructed.load(Ordering::Relaxed), 1);
        drop(device);
        // Left for SPDK to remove, with the hook before it.
        let left = pass("Pass0", "Malloc0", false);
        app::on_shutdown(move || {
            Box::pin(async move {
                sleep(Duration::from_millis(5)).await;
                println!("shutdown hook");
            })
        });
        std::mem::forget(left);
        app::stop(7);
    }

    /// Few commands at once: shows shortage, and needs less memory.
    fn small_pool() -> Value {
        json!({ "method": "bdev_set_options",
                "params": { "bdev_io_pool_size": 1024, "bdev_io_cache_size": 128 } })
    }

    /// What a test runner asks of a test program: the names of its tests.
    fn listed() -> bool {
        let asked = |word: &str| std::env::args().any(|argument| argument == word);
        if asked("--list") && !asked("--ignored") {
            println!("smoke: test");
        }
        asked("--list")
    }

    pub fn main() {
        if listed() {
            return;
        }
        let config =
            std::env::temp_dir().join(format!("presnap-smoke-{}.json", std::process::id()));
        if std::env::var_os(INITIATOR).is_some() {
            let text = json!({ "subsystems": [{ "subsystem": "bdev", "config": [small_pool()] }] });
            std::fs::write(&config, text.to_string()).expect("written");
            let options = AppOptions {
                name: "initiator".to_owned(),
                json_config: Some(config.clone()),
                rpc_addr: Some(socket()),
                mem_mib: Some(192),
                reactor_mask: Some("0x2".to_owned()),
                no_pci: true,
                trace_entries: Some(0),
                ..Default::default()
            };
            let rc = app::run(&options, || executor::spawn(initiator()).detach());
            let _ = std::fs::remove_file(config);
            assert_eq!(rc.expect("tried"), 0);
            return;
        }
        let text = json!({ "subsystems": [{ "subsystem": "bdev", "config": [
            small_pool(),
            { "method": "bdev_malloc_create",
              "params": { "name": "Malloc0", "num_blocks": 4096, "block_size": 4096 } },
            { "method": "bdev_malloc_create",
              "params": { "name": "Malloc1", "num_blocks": 2048, "block_size": 4096 } },
            { "method": "smoke_echo", "params": { "from": "config" } },
        ]}]});
        std::fs::write(&config, text.to_string()).expect("written");
        presnap::spdk::rpc::register("smoke_echo", |params| async move {
            sleep(Duration::from_millis(1)).await;
            if params.get("fail").is_some() {
                return Err(RpcError::errno(Errno::BUSY, "told to"));
            }
            Ok(params)
        });
        let options = AppOptions {
            name: "spdk_smoke".to_owned(),
            json_config: Some(config.clone()),
            rpc_addr: Some(socket()),
            reactor_mask: Some("0x3".to_owned()),
            mem_mib: Some(256),
            no_pci: true,
            trace_entries: Some(0),
            ..Default::default()
        };
        let done = Rc::new(Cell::new(false));
        let started = Rc::clone(&done);
        let rc = app::run(&options, move || {
            started.set(true);
            executor::spawn(all()).detach();
        })
        .expect("tried");
        let _ = std::fs::remove_file(config);
        assert!(done.get(), "SPDK did not start; hugepages? Run scripts/setup.sh as root");
        assert_eq!(rc, 7);
        println!("ok");
    }
}
