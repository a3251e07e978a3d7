/* Our own bdev module and its devices. What becomes of their commands: command.c. */
#include "compat.h"

void psc_env_note_app_thread(void);
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
