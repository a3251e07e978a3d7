/* Our own bdev module, its devices and their commands. */
#include "compat.h"

void psc_env_note_app_thread(void);
void psc_status_of(const struct spdk_bdev_io *bdev_io, struct psc_status *status);
const char *psc_claimed_by(struct spdk_bdev *bdev);

struct psc_device {
	struct spdk_bdev bdev;
	const struct psc_device_ops *ops;
	void *rust;
	bool read_only;
	/* Zero copies that are started and not ended. All threads. */
	uint64_t zcopies_open;
};

/* Context of each I/O channel of a psc_device. */
struct psc_channel {
	void *rust;
};

/* ---- the module --------------------------------------------------------------------------------- */

static int
module_init(void)
{
	psc_env_note_app_thread();
	return psc_rust == NULL ? 0 : psc_rust->psr_module_init();
}

static void
module_fini_start(void)
{
	if (psc_rust != NULL) {
		psc_rust->psr_module_fini_start();
	}
}

static void
module_fini(void)
{
	if (psc_rust != NULL) {
		psc_rust->psr_module_fini();
	}
}

static int
module_get_ctx_size(void)
{
	return (int)sizeof(struct psc_io);
}

static int
module_config_json(struct spdk_json_write_ctx *w)
{
	if (psc_rust != NULL) {
		psc_rust->psr_module_config_json(w);
	}
	return 0;
}

static void
module_examine_config(struct spdk_bdev *bdev)
{
	if (psc_rust != NULL) {
		psc_rust->psr_examine_config(bdev);
	}
	spdk_bdev_module_examine_done(&psc_module);
}

static void
module_examine_disk(struct spdk_bdev *bdev)
{
	if (psc_rust != NULL) {
		psc_rust->psr_examine_disk(bdev);
	} else {
		spdk_bdev_module_examine_done(&psc_module);
	}
}

void
psc_examine_disk_done(void)
{
	spdk_bdev_module_examine_done(&psc_module);
}

struct spdk_bdev_module psc_module = {
	.name = "presnap",
	.module_init = module_init,
	.fini_start = module_fini_start,
	.module_fini = module_fini,
	.get_ctx_size = module_get_ctx_size,
	.config_json = module_config_json,
	.examine_config = module_examine_config,
	.examine_disk = module_examine_disk,
};

SPDK_BDEV_MODULE_REGISTER(presnap, &psc_module)

/* ---- devices ------------------------------------------------------------------------------------ */

static void
device_free(struct psc_device *dev)
{
	free(dev->bdev.name);
	free(dev);
}

static void
device_gone(void *io_device)
{
	struct psc_device *dev = io_device;
	const struct psc_device_ops *ops = dev->ops;
	void *rust = dev->rust;

	spdk_bdev_destruct_done(&dev->bdev, 0);
	ops->psr_free(rust);
	device_free(dev);
}

void
psc_device_destruct_done(struct psc_device *dev)
{
	spdk_io_device_unregister(dev, device_gone);
}

static int
device_destruct(void *ctx)
{
	struct psc_device *dev = ctx;

	dev->ops->psr_destruct(dev->rust, dev);
	return 1; /* spdk_bdev_destruct_done() follows */
}

/*
 * On a zero copy that was started here and is not ended. The bdev layer may send an end whose start it
 * did itself, and what is in driver_ctx then is anyone's.
 */
static uint64_t
zcopy_mark_of(const struct psc_io *io)
{
	return (uint64_t)(uintptr_t)io ^ UINT64_C(0x7a636f7079207073);
}

static void
device_submit_zcopy(struct psc_device *dev, struct spdk_bdev_io *bdev_io, struct psc_io *io)
{
	io->offset_blocks = bdev_io->u.bdev.offset_blocks;
	io->num_blocks = bdev_io->u.bdev.num_blocks;
	io->zcopy_start = bdev_io->u.bdev.zcopy.start != 0;
	io->zcopy_populate = bdev_io->u.bdev.zcopy.populate != 0;
	io->zcopy_commit = bdev_io->u.bdev.zcopy.commit != 0;
	io->zcopy_kept = !io->zcopy_start && io->zcopy_mark == zcopy_mark_of(io);
	io->zcopy_mark = 0;
	if (io->zcopy_kept) {
		__atomic_fetch_sub(&dev->zcopies_open, 1, __ATOMIC_RELEASE);
	} else {
		io->base_io = NULL;
		io->zcopy_own_buf = !io->zcopy_start;
	}
	if (io->zcopy_start && bdev_io->u.bdev.iovs != NULL) {
		/* Since 21.07: room of its user's for the addresses of buffers, with anything in it. */
		bdev_io->u.bdev.iovs[0].iov_base = NULL;
		bdev_io->u.bdev.iovs[0].iov_len = 0;
		bdev_io->u.bdev.iovcnt = 1;
	}
}

void
psc_io_zcopy_keep(struct psc_io *io)
{
	struct psc_device *dev = ((struct spdk_bdev_io *)spdk_bdev_io_from_ctx(io))->bdev->ctxt;

	io->zcopy_mark = zcopy_mark_of(io);
	__atomic_fetch_add(&dev->zcopies_open, 1, __ATOMIC_RELEASE);
}

static void
device_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io)
{
	struct psc_device *dev = bdev_io->bdev->ctxt;
	struct psc_channel *channel = spdk_io_channel_get_ctx(ch);
	struct psc_io *io = (struct psc_io *)bdev_io->driver_ctx;

	io->type = bdev_io->type;
	io->device = dev->rust;
	io->channel = channel->rust;
	io->submit_ticks = bdev_io->internal.submit_tsc;
	switch (io->type) {
	case PSC_IO_RESET:
	case PSC_IO_ABORT:
		io->offset_blocks = 0;
		io->num_blocks = 0;
		break;
	case PSC_IO_ZCOPY:
		device_submit_zcopy(dev, bdev_io, io);
		break;
	default:
		io->offset_blocks = bdev_io->u.bdev.offset_blocks;
		io->num_blocks = bdev_io->u.bdev.num_blocks;
#if PSC_SINCE(23, 1)
		if (io->type == PSC_IO_COPY) {
			io->src_offset_blocks = bdev_io->u.bdev.copy.src_offset_blocks;
		}
#endif
		break;
	}
	dev->ops->psr_submit(dev->rust, channel->rust, io);
}

/*
 * Whether zero copies of who uses the bdev are ended. Those of SPDK's modules that pass them on may not
 * be, and then what the start holds would be held for ever; for these the bdev layer makes reads and
 * writes of them. While any is open the answer stays, since its end asks again.
 */
static bool
zcopy_user_ends(struct psc_device *dev)
{
	const char *claimed_by = psc_claimed_by(&dev->bdev);

	return claimed_by == NULL || strcmp(claimed_by, "NVMe-oF Target") == 0 ||
	       strcmp(claimed_by, psc_module.name) == 0 ||
	       __atomic_load_n(&dev->zcopies_open, __ATOMIC_ACQUIRE) != 0;
}

static bool
device_io_type_supported(void *ctx, enum spdk_bdev_io_type type)
{
	struct psc_device *dev = ctx;

	if (type == SPDK_BDEV_IO_TYPE_ZCOPY && !zcopy_user_ends(dev)) {
		return false;
	}
	return dev->ops->psr_io_type_supported(dev->rust, (uint32_t)type);
}

static struct spdk_io_channel *
device_get_io_channel(void *ctx)
{
	return spdk_get_io_channel(ctx);
}

static int
device_dump_info_json(void *ctx, struct spdk_json_write_ctx *w)
{
	struct psc_device *dev = ctx;

	dev->ops->psr_dump_info_json(dev->rust, w);
	return 0;
}

static void
device_write_config_json(struct spdk_bdev *bdev, struct spdk_json_write_ctx *w)
{
	struct psc_device *dev = bdev->ctxt;

	dev->ops->psr_write_config_json(dev->rust, w);
}

static const struct spdk_bdev_fn_table device_fn_table = {
	.destruct = device_destruct,
	.submit_request = device_submit,
	.io_type_supported = device_io_type_supported,
	.get_io_channel = device_get_io_channel,
	.dump_info_json = device_dump_info_json,
	.write_config_json = device_write_config_json,
};

static int
channel_create(void *io_device, void *ctx)
{
	struct psc_device *dev = io_device;
	struct psc_channel *channel = ctx;

	return dev->ops->psr_channel_create(dev->rust, &channel->rust);
}

static void
channel_destroy(void *io_device, void *ctx)
{
	struct psc_device *dev = io_device;
	struct psc_channel *channel = ctx;

	dev->ops->psr_channel_destroy(dev->rust, channel->rust);
}

static void
device_register_failed(void *io_device)
{
	device_free(io_device);
}

int
psc_device_register(const struct psc_device_spec *spec, const struct psc_device_ops *ops, void *rust,
		    struct psc_device **out)
{
	struct psc_device *dev;
	int rc;

	/* 20.07 reports "registered" to its listeners even when it was not; so ask first. */
	if (spdk_bdev_get_by_name(spec->name) != NULL) {
		return -EEXIST;
	}
	dev = calloc(1, sizeof(*dev));
	if (dev == NULL) {
		return -ENOMEM;
	}
	dev->ops = ops;
	dev->rust = rust;
	dev->read_only = spec->read_only;
	dev->bdev.ctxt = dev;
	dev->bdev.name = strdup(spec->name);
	if (dev->bdev.name == NULL) {
		free(dev);
		return -ENOMEM;
	}
	/* SPDK never writes to it. */
	dev->bdev.product_name = (char *)(uintptr_t)spec->product_name;
	dev->bdev.write_cache = spec->write_cache;
	dev->bdev.blocklen = spec->block_bytes;
	dev->bdev.blockcnt = spec->block_count;
	dev->bdev.write_unit_size = spec->write_unit_blocks;
	dev->bdev.acwu = (uint16_t)spec->compare_and_write_blocks;
	dev->bdev.required_alignment = spec->required_alignment_log2;
	dev->bdev.split_on_optimal_io_boundary = spec->split_on_optimal_io_boundary;
	dev->bdev.optimal_io_boundary = spec->optimal_io_boundary_blocks;
	memcpy(&dev->bdev.uuid, spec->uuid, sizeof(dev->bdev.uuid));
	dev->bdev.module = &psc_module;
	dev->bdev.fn_table = &device_fn_table;

	spdk_io_device_register(dev, channel_create, channel_destroy, sizeof(struct psc_channel),
				dev->bdev.name);
	/* Before the call: examining the new bdev may already open it. */
	*out = dev;
	rc = spdk_bdev_register(&dev->bdev);
	if (rc != 0) {
		*out = NULL;
		spdk_io_device_unregister(dev, device_register_failed);
	}
	return rc;
}

void
psc_device_unregister(struct psc_device *dev, psc_done_fn done, void *ctx)
{
	spdk_bdev_unregister(&dev->bdev, done, ctx);
}

struct spdk_bdev *
psc_device_bdev(struct psc_device *dev)
{
	return &dev->bdev;
}

int
psc_device_resize(struct psc_device *dev, uint64_t block_count)
{
	return spdk_bdev_notify_blockcnt_change(&dev->bdev, block_count);
}

bool
psc_bdev_is_read_only(struct spdk_bdev *bdev)
{
	return bdev->module == &psc_module && ((struct psc_device *)bdev->ctxt)->read_only;
}

struct for_each {
	psc_channel_fn fn;
	psc_done_fn done;
	void *ctx;
};

static void
for_each_step(struct spdk_io_channel_iter *i)
{
	struct for_each *each = spdk_io_channel_iter_get_ctx(i);
	struct psc_channel *channel = spdk_io_channel_get_ctx(spdk_io_channel_iter_get_channel(i));

	each->fn(each->ctx, channel->rust);
	spdk_for_each_channel_continue(i, 0);
}

static void
for_each_done(struct spdk_io_channel_iter *i, int status)
{
	struct for_each *each = spdk_io_channel_iter_get_ctx(i);

	each->done(each->ctx, status);
	free(each);
}

void
psc_device_for_each_channel(struct psc_device *dev, psc_channel_fn fn, psc_done_fn done, void *ctx)
{
	struct for_each *each = calloc(1, sizeof(*each));

	if (each == NULL) {
		abort();
	}
	each->fn = fn;
	each->done = done;
	each->ctx = ctx;
	spdk_for_each_channel(dev, for_each_step, each, for_each_done);
}

/* ---- commands ----------------------------------------------------------------------------------- */

static inline struct spdk_bdev_io *
outer(struct psc_io *io)
{
	return spdk_bdev_io_from_ctx(io);
}

void
psc_io_complete(struct psc_io *io, int32_t status)
{
	spdk_bdev_io_complete(outer(io), (enum spdk_bdev_io_status)status);
}

void
psc_io_complete_nvme(struct psc_io *io, uint32_t cdw0, uint16_t sct, uint16_t sc)
{
	spdk_bdev_io_complete_nvme_status(outer(io), cdw0, sct, sc);
}

void
psc_io_complete_status(struct psc_io *io, const struct psc_status *status)
{
	switch (status->status) {
	case PSC_STATUS_NVME_ERROR:
		psc_io_complete_nvme(io, status->cdw0, status->sct, status->sc);
		break;
	case PSC_STATUS_SUCCESS:
	case PSC_STATUS_ABORTED:
	case PSC_STATUS_FIRST_FUSED_FAILED:
	case PSC_STATUS_MISCOMPARE:
		psc_io_complete(io, status->status);
		break;
	default:
		psc_io_complete(io, PSC_STATUS_FAILED);
		break;
	}
}

/* End `io` as `base` ended. */
static void
complete_as(struct psc_io *io, struct spdk_bdev_io *base)
{
#if PSC_SINCE(24, 5)
	spdk_bdev_io_complete_base_io_status(outer(io), base);
#else
	switch (base->internal.status) {
	case SPDK_BDEV_IO_STATUS_NVME_ERROR:
		spdk_bdev_io_complete_nvme_status(outer(io), base->internal.error.nvme.cdw0,
						  base->internal.error.nvme.sct,
						  base->internal.error.nvme.sc);
		break;
	case SPDK_BDEV_IO_STATUS_SCSI_ERROR:
		spdk_bdev_io_complete_scsi_status(outer(io),
						  (enum spdk_scsi_status)base->internal.error.scsi.sc,
						  (enum spdk_scsi_sense)base->internal.error.scsi.sk,
						  base->internal.error.scsi.asc,
						  base->internal.error.scsi.ascq);
		break;
	default:
		spdk_bdev_io_complete(outer(io), (enum spdk_bdev_io_status)base->internal.status);
		break;
	}
#endif
}

/* Zero copy: the base's buffer goes up with the start... */
static void
zcopy_started(struct spdk_bdev_io *base, bool success, struct psc_io *io)
{
	struct psc_status status;
	struct iovec *iovs;
	int iovcnt;

	if (!success) {
		psc_status_of(base, &status);
		io->base_cb(io, &status);
		complete_as(io, base);
		spdk_bdev_free_io(base);
		return;
	}
	spdk_bdev_io_get_iovec(base, &iovs, &iovcnt);
	if (iovcnt == 1) {
		spdk_bdev_io_set_buf(outer(io), iovs[0].iov_base, iovs[0].iov_len);
	} else {
		outer(io)->u.bdev.iovs = iovs;
		outer(io)->u.bdev.iovcnt = iovcnt;
	}
	io->base_io = base;
	/* Our channel may be gone by the end: that of a rate limit that is lifted meanwhile. */
	io->zcopy_ch = spdk_bdev_get_io_channel(io->base_desc);
	io->base_cb(io, NULL);
	spdk_bdev_io_complete(outer(io), SPDK_BDEV_IO_STATUS_SUCCESS);
}

static void
zcopy_ended_home(void *ctx)
{
	struct psc_io *io = ctx;
	struct psc_status status = io->zcopy_status;

	io->base_cb(io, status.status == PSC_STATUS_SUCCESS ? NULL : &status);
	psc_io_complete_status(io, &status);
}

/* ... and comes back with the end, to the thread of the start. */
static void
zcopy_ended(struct spdk_bdev_io *base, struct psc_io *io)
{
	struct spdk_thread *home = spdk_bdev_io_get_thread(outer(io));

	psc_status_of(base, &io->zcopy_status);
	io->base_io = NULL;
	spdk_bdev_free_io(base);
	if (io->zcopy_ch != NULL) {
		spdk_put_io_channel(io->zcopy_ch);
	}
	if (home == spdk_get_thread()) {
		zcopy_ended_home(io);
	} else if (spdk_thread_send_msg(home, zcopy_ended_home, io) != 0) {
		/* Out of message objects: the process cannot go on in any case. */
		abort();
	}
}

static void
forward_done(struct spdk_bdev_io *base, bool success, void *ctx)
{
	struct psc_io *io = ctx;
	struct psc_status status;

	if (spdk_unlikely(io->type == PSC_IO_ZCOPY && !io->zcopy_own_buf)) {
		if (io->zcopy_start) {
			zcopy_started(base, success, io);
		} else {
			zcopy_ended(base, io);
		}
		return;
	}
	if (spdk_unlikely(!success)) {
		psc_status_of(base, &status);
	}
	if (io->base_mode == PSC_FORWARD_RETURN) {
		spdk_bdev_free_io(base);
		io->base_cb(io, success ? NULL : &status);
		return;
	}
	io->base_cb(io, success ? NULL : &status);
	if (spdk_likely(success)) {
		spdk_bdev_io_complete(outer(io), SPDK_BDEV_IO_STATUS_SUCCESS);
	} else {
		complete_as(io, base);
	}
	spdk_bdev_free_io(base);
}

static void forward_submit(struct psc_io *io, struct spdk_bdev_desc *desc,
			   struct spdk_io_channel *ch, uint64_t off);

static void
forward_retry(void *ctx)
{
	struct psc_io *io = ctx;

	forward_submit(io, io->base_desc, io->base_ch, io->base_offset_blocks);
}

static void
forward_failed(struct psc_io *io, int error)
{
	struct psc_status status = {
		.status = PSC_STATUS_FAILED,
		.error = error,
		.sct = SPDK_NVME_SCT_GENERIC,
		.sc = SPDK_NVME_SC_INTERNAL_DEVICE_ERROR,
	};
	bool complete = io->base_mode != PSC_FORWARD_RETURN;

	io->base_cb(io, &status);
	if (complete) {
		psc_io_complete(io, PSC_STATUS_FAILED);
	}
}

static void
forward_keep(struct psc_io *io, struct spdk_bdev_desc *desc, struct spdk_io_channel *ch, uint64_t off)
{
	io->base_desc = desc;
	io->base_ch = ch;
	io->base_offset_blocks = off;
}

static int
forward_zcopy(struct psc_io *io, struct spdk_bdev_desc *desc, struct spdk_io_channel *ch, uint64_t off)
{
	struct spdk_bdev_io *bdev_io = outer(io);
	uint64_t num = io->num_blocks;

	if (io->zcopy_own_buf && io->zcopy_start) {
		return spdk_bdev_readv_blocks(desc, ch, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt,
					      off, num, forward_done, io);
	}
	if (io->zcopy_own_buf) {
		return spdk_bdev_writev_blocks(desc, ch, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt,
					       off, num, forward_done, io);
	}
	forward_keep(io, desc, ch, off);
	if (io->zcopy_start) {
#if PSC_SINCE(21, 7)
		return spdk_bdev_zcopy_start(desc, ch, NULL, 0, off, num, io->zcopy_populate,
					     forward_done, io);
#else
		return spdk_bdev_zcopy_start(desc, ch, off, num, io->zcopy_populate, forward_done, io);
#endif
	}
	if (io->base_io == NULL) {
		return -EINVAL; /* the start was not forwarded */
	}
	if (spdk_bdev_io_get_thread(io->base_io) != spdk_get_thread()) {
		/* A rate limit came or went in between, and with it the thread that commands come on. */
		return spdk_thread_send_msg(spdk_bdev_io_get_thread(io->base_io), forward_retry, io);
	}
	return spdk_bdev_zcopy_end(io->base_io, io->zcopy_commit, forward_done, io);
}

static void
forward_submit(struct psc_io *io, struct spdk_bdev_desc *desc, struct spdk_io_channel *ch,
	       uint64_t off)
{
	struct spdk_bdev_io *bdev_io = outer(io);
	uint64_t num = io->num_blocks;
	int rc;

	switch (io->type) {
	case PSC_IO_READ:
		rc = spdk_bdev_readv_blocks(desc, ch, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt, off,
					    num, forward_done, io);
		break;
	case PSC_IO_WRITE:
		rc = spdk_bdev_writev_blocks(desc, ch, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt,
					     off, num, forward_done, io);
		break;
	case PSC_IO_WRITE_ZEROES:
		rc = spdk_bdev_write_zeroes_blocks(desc, ch, off, num, forward_done, io);
		break;
	case PSC_IO_UNMAP:
		rc = spdk_bdev_unmap_blocks(desc, ch, off, num, forward_done, io);
		break;
	case PSC_IO_FLUSH:
		rc = spdk_bdev_flush_blocks(desc, ch, off, num, forward_done, io);
		break;
	case PSC_IO_RESET:
		rc = spdk_bdev_reset(desc, ch, forward_done, io);
		break;
	case PSC_IO_COMPARE:
		rc = spdk_bdev_comparev_blocks(desc, ch, bdev_io->u.bdev.iovs, bdev_io->u.bdev.iovcnt,
					       off, num, forward_done, io);
		break;
	case PSC_IO_COMPARE_AND_WRITE:
		rc = spdk_bdev_comparev_and_writev_blocks(desc, ch, bdev_io->u.bdev.iovs,
				bdev_io->u.bdev.iovcnt, bdev_io->u.bdev.fused_iovs,
				bdev_io->u.bdev.fused_iovcnt, off, num, forward_done, io);
		break;
	case PSC_IO_ZCOPY:
		rc = forward_zcopy(io, desc, ch, off);
		break;
	case PSC_IO_ABORT:
		/* Commands that were forwarded carry their psc_io as callback argument. */
		rc = spdk_bdev_abort(desc, ch, bdev_io->u.abort.bio_to_abort->driver_ctx, forward_done,
				     io);
		break;
#if PSC_SINCE(23, 1)
	case PSC_IO_COPY:
		/* Moves with the destination, so the distance stays what it was. */
		rc = spdk_bdev_copy_blocks(desc, ch, off, io->src_offset_blocks + off - io->offset_blocks,
					   num, forward_done, io);
		break;
#endif
	default:
		rc = -ENOTSUP;
		break;
	}
	if (spdk_likely(rc == 0)) {
		return;
	}
	if (rc == -ENOMEM) {
		struct spdk_bdev_io_wait_entry *wait = (void *)io->wait;

		forward_keep(io, desc, ch, off);
		memset(wait, 0, sizeof(*wait));
		wait->bdev = spdk_bdev_desc_get_bdev(desc);
		wait->cb_fn = forward_retry;
		wait->cb_arg = io;
		if (spdk_bdev_queue_io_wait(wait->bdev, ch, wait) == 0) {
			return;
		}
		/* It was another resource that ran out: no one will call, so try again next round. */
		if (spdk_thread_send_msg(spdk_get_thread(), forward_retry, io) == 0) {
			return;
		}
	}
	forward_failed(io, rc);
}

static void
forward_got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io, bool success)
{
	struct psc_io *io = (struct psc_io *)bdev_io->driver_ctx;

	(void)ch;
	if (success) {
		forward_retry(io);
	} else {
		forward_failed(io, -ENOBUFS);
	}
}

static uint64_t
data_bytes(struct spdk_bdev_io *bdev_io)
{
	return bdev_io->u.bdev.num_blocks * bdev_io->bdev->blocklen;
}

/* 20.07 calls back at once when there is a buffer; this saves the way there. */
static inline bool
has_buf(struct spdk_bdev_io *bdev_io)
{
	return bdev_io->bdev->required_alignment == 0 && bdev_io->u.bdev.iovs != NULL &&
	       bdev_io->u.bdev.iovs[0].iov_base != NULL;
}

static inline bool
needs_buf(struct psc_io *io)
{
	bool reads = io->type == PSC_IO_READ ||
		     (io->type == PSC_IO_ZCOPY && io->zcopy_own_buf && io->zcopy_start);

	return reads && !has_buf(outer(io));
}

void
psc_io_forward(struct psc_io *io, struct spdk_bdev_desc *desc, struct spdk_io_channel *ch,
	       uint64_t offset_blocks, psc_io_cb cb, uint8_t mode)
{
	io->base_cb = cb;
	io->base_mode = mode;
	if (spdk_unlikely(needs_buf(io))) {
		forward_keep(io, desc, ch, offset_blocks);
		spdk_bdev_io_get_buf(outer(io), forward_got_buf, data_bytes(outer(io)));
	} else {
		forward_submit(io, desc, ch, offset_blocks);
	}
}

static void
got_buf(struct spdk_io_channel *ch, struct spdk_bdev_io *bdev_io, bool success)
{
	struct psc_io *io = (struct psc_io *)bdev_io->driver_ctx;

	(void)ch;
	((psc_io_buf_cb)(uintptr_t)io->base_offset_blocks)(io, success);
}

void
psc_io_get_buf(struct psc_io *io, psc_io_buf_cb cb)
{
	if (io->type != PSC_IO_READ) {
		cb(io, true);
		return;
	}
	/* Not forwarded while it waits for its buffer, so this field is free. */
	io->base_offset_blocks = (uint64_t)(uintptr_t)cb;
	spdk_bdev_io_get_buf(outer(io), got_buf, data_bytes(outer(io)));
}

struct iovec *
psc_io_iovs(struct psc_io *io, int32_t *iovcnt)
{
	*iovcnt = outer(io)->u.bdev.iovcnt;
	return outer(io)->u.bdev.iovs;
}

struct psc_io *
psc_io_abort_target(struct psc_io *io)
{
	struct spdk_bdev_io *target = outer(io)->u.abort.bio_to_abort;

	if (target == NULL || target->bdev->module != &psc_module) {
		return NULL;
	}
	return (struct psc_io *)target->driver_ctx;
}

struct spdk_thread *
psc_io_thread(struct psc_io *io)
{
	return spdk_bdev_io_get_thread(outer(io));
}
