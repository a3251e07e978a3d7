/*
 * The one boundary between presnap and SPDK.
 *
 * psc_* functions are C that Rust calls. psr_* members of `struct psr_calls` are Rust that C calls.
 * Rust sees SPDK's own structures only as opaque pointers; whatever differs between SPDK versions is
 * decided in the .c files beside this header (SPDK_VERSION), never in Rust. This header itself
 * includes nothing of SPDK, so the generated bindings are the same for every SPDK version.
 */
#ifndef PRESNAP_PSC_H
#define PRESNAP_PSC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct spdk_bdev;
struct spdk_bdev_desc;
struct spdk_bdev_io;
struct spdk_io_channel;
struct spdk_json_write_ctx;
struct spdk_jsonrpc_request;
struct spdk_nvmf_subsystem;
struct spdk_poller;
struct spdk_thread;

/* Same numbers as enum spdk_bdev_io_type; bdev.c asserts it for the SPDK it is compiled against. */
enum psc_io_type {
	PSC_IO_INVALID = 0,
	PSC_IO_READ = 1,
	PSC_IO_WRITE = 2,
	PSC_IO_UNMAP = 3,
	PSC_IO_FLUSH = 4,
	PSC_IO_RESET = 5,
	PSC_IO_WRITE_ZEROES = 9,
	PSC_IO_ZCOPY = 10,
	PSC_IO_COMPARE = 14,
	PSC_IO_COMPARE_AND_WRITE = 15,
	PSC_IO_ABORT = 16,
	PSC_IO_COPY = 19,
};

/* Same numbers as enum spdk_bdev_io_status. */
enum psc_io_status {
	PSC_STATUS_AIO_ERROR = -8,
	PSC_STATUS_ABORTED = -7,
	PSC_STATUS_FIRST_FUSED_FAILED = -6,
	PSC_STATUS_MISCOMPARE = -5,
	PSC_STATUS_NOMEM = -4,
	PSC_STATUS_SCSI_ERROR = -3,
	PSC_STATUS_NVME_ERROR = -2,
	PSC_STATUS_FAILED = -1,
	PSC_STATUS_PENDING = 0,
	PSC_STATUS_SUCCESS = 1,
};

/* Same numbers as enum spdk_bdev_event_type. */
enum psc_event {
	PSC_EVENT_REMOVE = 0,
	PSC_EVENT_RESIZE = 1,
	PSC_EVENT_MEDIA_MANAGEMENT = 2,
};

/* How a command ended. */
struct psc_status {
	int32_t status; /* enum psc_io_status */
	int32_t error; /* negative errno when the command never reached the device, else 0 */
	uint32_t cdw0;
	uint16_t sct; /* NVMe status code type and code, also filled for errors that are not NVMe's */
	uint16_t sc;
};

/* ---- Rust that C calls ------------------------------------------------------------------------ */

struct psc_device;
struct psc_io;

struct psr_calls {
	/* app: on the app thread */
	void (*psr_app_started)(void *ctx);
	void (*psr_app_shutdown)(void);
	/* bdev users: on the thread that opened the descriptor */
	void (*psr_desc_event)(uint32_t event, void *ctx);
	/* bdev module */
	int (*psr_module_init)(void);
	void (*psr_module_fini_start)(void);
	void (*psr_module_fini)(void);
	void (*psr_module_config_json)(struct spdk_json_write_ctx *w);
	void (*psr_examine_config)(struct spdk_bdev *bdev);
	/* must lead to one psc_examine_disk_done() */
	void (*psr_examine_disk)(struct spdk_bdev *bdev);
	/* rpc: must lead to one psc_rpc_reply_*() for this request; params is JSON text or NULL */
	void (*psr_rpc)(uint32_t slot, struct spdk_jsonrpc_request *request, const char *params,
			size_t params_len);
};

/* To be called once, before any other function here that can call back. */
void psc_set_rust(const struct psr_calls *calls);

/* ---- env, threads, pollers --------------------------------------------------------------------- */

const char *psc_spdk_version_string(void);

uint64_t psc_ticks(void);
uint64_t psc_ticks_hz(void);
/* Nanoseconds that the calling OS thread has been on a CPU. */
uint64_t psc_os_thread_cpu_ns(void);
void *psc_dma_zmalloc(size_t len, size_t align);
void psc_dma_free(void *buf);

typedef void (*psc_msg_fn)(void *ctx);
typedef int (*psc_poller_fn)(void *ctx); /* > 0 busy, 0 idle */

struct spdk_thread *psc_thread_current(void);
struct spdk_thread *psc_thread_app(void);
const char *psc_thread_name(const struct spdk_thread *thread);
int psc_thread_send(const struct spdk_thread *thread, psc_msg_fn fn, void *ctx);
/* Runs fn(ctx) on every SPDK thread, then done(ctx) on the calling one. */
void psc_thread_for_each(psc_msg_fn fn, void *ctx, psc_msg_fn done);
struct spdk_poller *psc_poller_register(psc_poller_fn fn, void *ctx, uint64_t period_us,
					const char *name);
void psc_poller_unregister(struct spdk_poller *poller);
/*
 * Of the calling OS thread: the given CPUs, or with count 0 all that the process started with, without
 * the reactors' as far as any are left.
 */
int psc_os_thread_set_cpus(const uint32_t *cpus, size_t count);
/* The CPU that the calling reactor runs on, or UINT32_MAX where that is none. */
uint32_t psc_reactor_cpu(void);
/* Ends the process at once: nothing is closed, no handler of exit() runs. */
void psc_exit_now(int status);

/* ---- stacks of other OS threads ---------------------------------------------------------------- */

enum { PSC_STACK_WORDS_MAX = 4096, PSC_STACK_REGISTERS = 33 };

struct psc_stack {
	uint32_t state;
	int32_t os_thread; /* that was asked */
	uint64_t mark;     /* what the thread's mark was when it wrote the rest */
	uint64_t pc;	   /* where it was */
	uint64_t sp;
	uint64_t registers[PSC_STACK_REGISTERS]; /* by their numbers in DWARF; those without are 0 */
	uint64_t from;				 /* address of the first word */
	uint32_t count;
	uint64_t words[PSC_STACK_WORDS_MAX]; /* of the stack, innermost first */
};

/* Once, before the others: takes the signal SIGURG. 0 or a negative errno. */
int psc_stack_install(void);
/*
 * From now on the calling OS thread writes its stacks there, with what *mark is then; both live for ever. The answer is
 * its number, for the next one. Cheap when it was the same before.
 */
int32_t psc_stack_of_this_thread(struct psc_stack *stack, const uint64_t *mark);
/*
 * Has an OS thread write its stack, which it does as soon as it runs outside the kernel. 0 or a negative errno;
 * -EBUSY while it has not done so since it was asked before.
 */
int psc_stack_ask(struct psc_stack *stack, int32_t os_thread);
/* Whether it has; then the rest may be read until it is asked again. */
bool psc_stack_take(struct psc_stack *stack);
/* What the signal handler does: copies what is on a stack from `sp` on, which must be between `low` and `end`. */
void psc_stack_copy(struct psc_stack *stack, uint64_t sp, uint64_t low, uint64_t end);

/* How to find callers (.eh_frame_hdr and what it refers to), of the program or a library. */
struct psc_unwind_tables {
	uint64_t header;
	uint64_t header_len;
	/* The part of memory that both are in; it is never written. */
	uint64_t segment;
	uint64_t segment_len;
};

/* Those for code at an address. Not from a signal handler: it takes the loader's lock. */
bool psc_unwind_tables_at(uint64_t pc, struct psc_unwind_tables *tables);

/* ---- app --------------------------------------------------------------------------------------- */

struct psc_app_opts {
	const char *name;
	const char *json_config; /* or NULL */
	const char *rpc_addr; /* or NULL: no RPC server */
	const char *reactor_mask; /* or NULL: core 0 */
	const char *env_args; /* more EAL arguments, or NULL */
	int32_t mem_mib; /* < 0: SPDK's default */
	int32_t shm_id; /* < 0: private to this process */
	int64_t trace_entries; /* per core; < 0: SPDK's default; 0: no trace file */
	bool no_pci;
	bool no_huge;
	bool single_file_segments;
	bool delay_subsystem_init;
	bool quiet; /* log warnings and errors only */
};

/* Files and sockets made from now on are for this user only. */
void psc_umask_private(void);
/* Blocks until the app has stopped; the return code is psc_app_stop()'s. */
int psc_app_run(const struct psc_app_opts *opts, void *ctx);
void psc_app_stop(int rc);

/* ---- bdevs, users' side ------------------------------------------------------------------------ */

struct psc_bdev_info {
	const char *name;
	const char *product_name;
	const char *module_name;
	const char *claimed_by; /* or NULL */
	uint64_t block_count;
	uint64_t io_types; /* bit per enum psc_io_type; zero copy where the module itself does it */
	uint32_t block_bytes; /* with interleaved metadata */
	uint32_t data_block_bytes; /* without */
	uint32_t md_bytes;
	uint32_t dif_type; /* 0: none */
	uint32_t write_unit_blocks;
	uint32_t optimal_io_boundary_blocks; /* 0: none */
	uint32_t compare_and_write_blocks;
	uint32_t buf_align; /* bytes */
	uint8_t uuid[16];
	bool split_on_optimal_io_boundary;
	bool md_interleaved;
	bool write_cache;
	bool zoned;
};

struct spdk_bdev *psc_bdev_first(void);
struct spdk_bdev *psc_bdev_next(struct spdk_bdev *bdev);
struct spdk_bdev *psc_bdev_by_name(const char *name);
void psc_bdev_info(struct spdk_bdev *bdev, struct psc_bdev_info *info);

int psc_desc_open(const char *name, bool write, void *event_ctx, struct spdk_bdev_desc **desc);
/* On the opening thread. */
void psc_desc_close(struct spdk_bdev_desc *desc);
struct spdk_bdev *psc_desc_bdev(struct spdk_bdev_desc *desc);
/* Exclusive write claim for the presnap module. */
int psc_desc_claim(struct spdk_bdev_desc *desc);
void psc_desc_release(struct spdk_bdev_desc *desc);
struct spdk_io_channel *psc_desc_get_channel(struct spdk_bdev_desc *desc);
void psc_channel_put(struct spdk_io_channel *ch);

/* ---- commands of our own to a bdev -------------------------------------------------------------- */

#define PSC_WAIT_WORDS 8

struct psc_op;
typedef void (*psc_op_cb)(struct psc_op *op);

/* Caller's memory; must not move or go away until the callback. */
struct psc_op {
	struct spdk_bdev_desc *desc;
	struct spdk_io_channel *ch;
	struct iovec *iovs;
	uint64_t offset_blocks;
	uint64_t num_blocks;
	uint64_t src_offset_blocks; /* PSC_IO_COPY */
	psc_op_cb cb;
	void *ctx;
	int32_t iovcnt;
	uint32_t type; /* enum psc_io_type */
	struct psc_status status;
	uint64_t wait[PSC_WAIT_WORDS]; /* struct spdk_bdev_io_wait_entry */
	struct spdk_bdev_io *zcopy_io; /* PSC_IO_ZCOPY: NULL to start one, which sets it; else to end it */
	bool zcopy_populate;
	bool zcopy_commit;
};

/*
 * Submits, waiting as needed for a free spdk_bdev_io. The callback comes exactly once, with op->status
 * filled, and, but for zero copy, never before this function returned. A zero copy's buffers are in
 * op->iovs from a successful start to the end.
 */
void psc_op_submit(struct psc_op *op);

/* ---- our own bdevs ------------------------------------------------------------------------------ */

#define PSC_IO_USER_BYTES 192

/*
 * Called on completion of a forwarded command, on the thread that submitted it. Status is NULL for
 * success.
 */
typedef void (*psc_io_cb)(struct psc_io *io, const struct psc_status *status);

enum psc_forward_mode {
	/* cb, then the command ends with the base command's status */
	PSC_FORWARD_COMPLETE = 0,
	/* cb owns the command again and has to complete it */
	PSC_FORWARD_RETURN = 1,
	/* as COMPLETE, but cb is called only if the base command failed; not for zero copy */
	PSC_FORWARD_PASS = 2,
};

/*
 * Per-command area of a command to one of our bdevs (SPDK's driver_ctx). What every command needs comes
 * first: with 64 in flight each cache line more is felt. Rust reads the part above the line; the rest is
 * the shim's own.
 */
struct psc_io {
	uint64_t offset_blocks;
	uint64_t num_blocks;
	void *device; /* Rust's device */
	void *channel; /* Rust's channel */
	uint64_t submit_ticks; /* when the bdev layer got the command */
	uint8_t type; /* enum psc_io_type */
	bool zcopy_start;
	bool zcopy_populate;
	bool zcopy_commit;
	uint8_t base_mode; /* enum psc_forward_mode; command.c's */
	bool zcopy_own_buf; /* its buffer is the bdev layer's; forwarded as a read or write of it */
	bool zcopy_kept; /* an end: `user` is as the start left it */
	uint8_t reserved;
	psc_io_cb base_cb; /* command.c's */
	uint64_t user[PSC_IO_USER_BYTES / 8];
	void *user_fn; /* Rust's: completion function of the forward under way */
	void *user_hold; /* Rust's: keeps the base channel of the forward under way alive */
	uint64_t src_offset_blocks; /* PSC_IO_COPY */
	/* ---------------------------------------------------------------------------------------- */
	struct spdk_bdev_desc *base_desc; /* while the command waits for something */
	struct spdk_io_channel *base_ch;
	uint64_t base_offset_blocks;
	/* Between the start and the end of a zero copy: */
	uint64_t zcopy_mark;
	struct spdk_bdev_io *base_io;
	struct spdk_io_channel *zcopy_ch; /* base_io's, held */
	struct psc_status zcopy_status; /* of the end, on its way to the thread it came on */
	uint64_t wait[PSC_WAIT_WORDS];
};

struct psc_device_ops {
	void (*psr_submit)(void *device, void *channel, struct psc_io *io);
	bool (*psr_io_type_supported)(void *device, uint32_t type);
	/* 0 and *channel, or negative errno */
	int (*psr_channel_create)(void *device, void **channel);
	void (*psr_channel_destroy)(void *device, void *channel);
	void (*psr_dump_info_json)(void *device, struct spdk_json_write_ctx *w);
	void (*psr_write_config_json)(void *device, struct spdk_json_write_ctx *w);
	/* must lead to one psc_device_destruct_done() */
	void (*psr_destruct)(void *device, struct psc_device *psc);
	/* the last call: frees the Rust side */
	void (*psr_free)(void *device);
};

struct psc_device_spec {
	const char *name;
	const char *product_name; /* static */
	uint64_t block_count;
	uint32_t block_bytes;
	uint32_t optimal_io_boundary_blocks;
	uint32_t write_unit_blocks;
	uint32_t compare_and_write_blocks;
	uint8_t required_alignment_log2;
	bool split_on_optimal_io_boundary;
	bool write_cache;
	bool read_only;
	uint8_t uuid[16]; /* zero: SPDK makes a random one */
};

int psc_device_register(const struct psc_device_spec *spec, const struct psc_device_ops *ops,
			void *device, struct psc_device **out);
typedef void (*psc_done_fn)(void *ctx, int rc);
void psc_device_unregister(struct psc_device *dev, psc_done_fn done, void *ctx);
/* The base is out of the way: let go of the io_device, then tell SPDK, then psr_free. */
void psc_device_destruct_done(struct psc_device *dev);
int psc_device_resize(struct psc_device *dev, uint64_t block_count);
/* fn(ctx, channel) on each channel's thread, then done(ctx, 0) on the calling one. */
typedef void (*psc_channel_fn)(void *ctx, void *channel);
void psc_device_for_each_channel(struct psc_device *dev, psc_channel_fn fn, psc_done_fn done,
				 void *ctx);
void psc_examine_disk_done(void);

void psc_io_complete(struct psc_io *io, int32_t status);
void psc_io_complete_nvme(struct psc_io *io, uint32_t cdw0, uint16_t sct, uint16_t sc);
void psc_io_complete_status(struct psc_io *io, const struct psc_status *status);
/*
 * Sends the command on to a bdev, at the given offset; waits for resources as needed. The callback
 * may come before this function returns.
 */
void psc_io_forward(struct psc_io *io, struct spdk_bdev_desc *desc, struct spdk_io_channel *ch,
		    uint64_t offset_blocks, psc_io_cb cb, uint8_t mode);
/* A zero copy's start is about to succeed, and `user` has to be there at its end. */
void psc_io_zcopy_keep(struct psc_io *io);
/* Data buffers of a read or write; a read without buffers yet gets them first. */
typedef void (*psc_io_buf_cb)(struct psc_io *io, bool success);
void psc_io_get_buf(struct psc_io *io, psc_io_buf_cb cb);
struct iovec *psc_io_iovs(struct psc_io *io, int32_t *iovcnt);
struct spdk_thread *psc_io_thread(struct psc_io *io);

/* ---- json, rpc ---------------------------------------------------------------------------------- */

int psc_json_name(struct spdk_json_write_ctx *w, const char *name, size_t len);
int psc_json_raw(struct spdk_json_write_ctx *w, const char *text, size_t len);

#define PSC_RPC_SLOTS_MAX 64

int psc_rpc_register(const char *method, uint32_t slot, bool startup, bool runtime);
void psc_rpc_reply_result(struct spdk_jsonrpc_request *request, const char *text, size_t len);
void psc_rpc_reply_error(struct spdk_jsonrpc_request *request, int code, const char *message);

/* ---- nvmf --------------------------------------------------------------------------------------- */

struct psc_nvmf_ns {
	const char *bdev_name;
	uint32_t nsid; /* 0: the next free one */
	uint8_t nguid[16];
	uint8_t eui64[8];
	uint8_t uuid[16];
};

struct psc_nvmf_addr {
	const char *trtype;
	const char *adrfam;
	const char *traddr;
	const char *trsvcid;
};

bool psc_nvmf_have_transport(const char *trtype);
/* 0: done will be called; else negative errno and it will not. The same below. */
int psc_nvmf_transport_create(const char *trtype, psc_done_fn done, void *ctx);
struct spdk_nvmf_subsystem *psc_nvmf_subsystem_find(const char *nqn);
int psc_nvmf_subsystem_create(const char *nqn, const char *serial, const char *model,
			      uint32_t max_namespaces, struct spdk_nvmf_subsystem **out);
int psc_nvmf_subsystem_allow_any_host(struct spdk_nvmf_subsystem *s, bool allow);
int psc_nvmf_subsystem_add_host(struct spdk_nvmf_subsystem *s, const char *nqn);
int psc_nvmf_subsystem_add_ns(struct spdk_nvmf_subsystem *s, const struct psc_nvmf_ns *ns,
			      uint32_t *nsid);
int psc_nvmf_subsystem_remove_ns(struct spdk_nvmf_subsystem *s, uint32_t nsid);
/* nsid of the first namespace at or after *nsid and its bdev's name; NULL at the end. */
const char *psc_nvmf_subsystem_next_ns(struct spdk_nvmf_subsystem *s, uint32_t *nsid);
/* NVMe (not discovery) subsystems one after the other, first with NULL; NULL at the end. */
struct spdk_nvmf_subsystem *psc_nvmf_subsystem_next(struct spdk_nvmf_subsystem *s);
const char *psc_nvmf_subsystem_nqn(struct spdk_nvmf_subsystem *s);
const char *psc_nvmf_subsystem_model(struct spdk_nvmf_subsystem *s);
bool psc_nvmf_subsystem_any_host(struct spdk_nvmf_subsystem *s);
/* The host and the listener number i, from 0; false at the end. Valid until the next change. */
bool psc_nvmf_subsystem_host(struct spdk_nvmf_subsystem *s, uint32_t i, const char **nqn);
bool psc_nvmf_subsystem_listener(struct spdk_nvmf_subsystem *s, uint32_t i,
				 struct psc_nvmf_addr *addr);
int psc_nvmf_subsystem_listen(struct spdk_nvmf_subsystem *s, const struct psc_nvmf_addr *addr,
			      psc_done_fn done, void *ctx);
int psc_nvmf_subsystem_start(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx);
int psc_nvmf_subsystem_stop(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx);
/* Commands to the namespace `nsid`, 0 for none, are done when this is, and others wait. */
int psc_nvmf_subsystem_pause(struct spdk_nvmf_subsystem *s, uint32_t nsid, psc_done_fn done, void *ctx);
int psc_nvmf_subsystem_resume(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx);
int psc_nvmf_subsystem_destroy(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx);
/* Identify Namespace of a read-only bdev of ours then shows the write-protect attribute. */
void psc_nvmf_install_identify(void);
/* Whether a bdev is one of ours and was registered read-only. */
bool psc_bdev_is_read_only(struct spdk_bdev *bdev);

#endif
