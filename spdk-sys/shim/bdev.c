/* Bdevs as their users see them. */
#include "compat.h"

#define SAME(a, b) SPDK_STATIC_ASSERT((int)(a) == (int)(b), "enum of psc.h and SPDK differ")
SAME(PSC_IO_INVALID, SPDK_BDEV_IO_TYPE_INVALID);
SAME(PSC_IO_READ, SPDK_BDEV_IO_TYPE_READ);
SAME(PSC_IO_WRITE, SPDK_BDEV_IO_TYPE_WRITE);
SAME(PSC_IO_UNMAP, SPDK_BDEV_IO_TYPE_UNMAP);
SAME(PSC_IO_FLUSH, SPDK_BDEV_IO_TYPE_FLUSH);
SAME(PSC_IO_RESET, SPDK_BDEV_IO_TYPE_RESET);
SAME(PSC_IO_WRITE_ZEROES, SPDK_BDEV_IO_TYPE_WRITE_ZEROES);
SAME(PSC_IO_ZCOPY, SPDK_BDEV_IO_TYPE_ZCOPY);
SAME(PSC_IO_COMPARE, SPDK_BDEV_IO_TYPE_COMPARE);
SAME(PSC_IO_COMPARE_AND_WRITE, SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE);
SAME(PSC_IO_ABORT, SPDK_BDEV_IO_TYPE_ABORT);
#if PSC_SINCE(23, 1)
SAME(PSC_IO_COPY, SPDK_BDEV_IO_TYPE_COPY);
#endif
#if PSC_SINCE(21, 1)
SAME(PSC_STATUS_AIO_ERROR, SPDK_BDEV_IO_STATUS_AIO_ERROR);
#endif
SAME(PSC_STATUS_ABORTED, SPDK_BDEV_IO_STATUS_ABORTED);
SAME(PSC_STATUS_FIRST_FUSED_FAILED, SPDK_BDEV_IO_STATUS_FIRST_FUSED_FAILED);
SAME(PSC_STATUS_MISCOMPARE, SPDK_BDEV_IO_STATUS_MISCOMPARE);
SAME(PSC_STATUS_NOMEM, SPDK_BDEV_IO_STATUS_NOMEM);
SAME(PSC_STATUS_SCSI_ERROR, SPDK_BDEV_IO_STATUS_SCSI_ERROR);
SAME(PSC_STATUS_NVME_ERROR, SPDK_BDEV_IO_STATUS_NVME_ERROR);
SAME(PSC_STATUS_FAILED, SPDK_BDEV_IO_STATUS_FAILED);
SAME(PSC_STATUS_PENDING, SPDK_BDEV_IO_STATUS_PENDING);
SAME(PSC_STATUS_SUCCESS, SPDK_BDEV_IO_STATUS_SUCCESS);
SAME(PSC_EVENT_REMOVE, SPDK_BDEV_EVENT_REMOVE);
SAME(PSC_EVENT_RESIZE, SPDK_BDEV_EVENT_RESIZE);
SAME(PSC_EVENT_MEDIA_MANAGEMENT, SPDK_BDEV_EVENT_MEDIA_MANAGEMENT);
SPDK_STATIC_ASSERT(sizeof(struct spdk_bdev_io_wait_entry) <= PSC_WAIT_WORDS * 8, "PSC_WAIT_WORDS");
SPDK_STATIC_ASSERT(sizeof(struct spdk_uuid) == 16, "uuid");

struct spdk_bdev *
psc_bdev_first(void)
{
	return spdk_bdev_first();
}

struct spdk_bdev *
psc_bdev_next(struct spdk_bdev *bdev)
{
	return spdk_bdev_next(bdev);
}

struct spdk_bdev *
psc_bdev_by_name(const char *name)
{
	return spdk_bdev_get_by_name(name);
}

const char *psc_claimed_by(struct spdk_bdev *bdev);

const char *
psc_claimed_by(struct spdk_bdev *bdev)
{
#if PSC_SINCE(23, 1)
	switch (bdev->internal.claim_type) {
	case SPDK_BDEV_CLAIM_NONE:
		return NULL;
	case SPDK_BDEV_CLAIM_EXCL_WRITE:
		return bdev->internal.claim.v1.module->name;
	default:
		return "several modules";
	}
#else
	return bdev->internal.claim_module == NULL ? NULL : bdev->internal.claim_module->name;
#endif
}

/*
 * Whether the bdev lends its own buffers, and takes them back. The bdev layer offers zero copy for all
 * others, too. Some of SPDK's modules that pass it on (passthru and what is made of partitions) start a
 * second one instead of ending the first: what is written where their base has to write on the end is
 * lost. So only modules that are known to do it right count; others get reads and writes.
 */
static bool
lends_buffers(struct spdk_bdev *bdev)
{
	if (bdev->module != &psc_module && strcmp(bdev->module->name, "malloc") != 0) {
		return false;
	}
	return bdev->fn_table->io_type_supported(bdev->ctxt, SPDK_BDEV_IO_TYPE_ZCOPY);
}

void
psc_bdev_info(struct spdk_bdev *bdev, struct psc_bdev_info *info)
{
	uint32_t type;

	memset(info, 0, sizeof(*info));
	info->name = spdk_bdev_get_name(bdev);
	info->product_name = spdk_bdev_get_product_name(bdev);
	info->module_name = bdev->module->name;
	info->claimed_by = psc_claimed_by(bdev);
	info->block_count = spdk_bdev_get_num_blocks(bdev);
	info->block_bytes = spdk_bdev_get_block_size(bdev);
	info->data_block_bytes = spdk_bdev_get_data_block_size(bdev);
	info->md_bytes = spdk_bdev_get_md_size(bdev);
	info->dif_type = (uint32_t)spdk_bdev_get_dif_type(bdev);
	info->write_unit_blocks = spdk_bdev_get_write_unit_size(bdev);
	info->optimal_io_boundary_blocks = spdk_bdev_get_optimal_io_boundary(bdev);
	info->compare_and_write_blocks = spdk_bdev_get_acwu(bdev);
	info->buf_align = (uint32_t)spdk_bdev_get_buf_align(bdev);
	memcpy(info->uuid, spdk_bdev_get_uuid(bdev), sizeof(info->uuid));
	info->split_on_optimal_io_boundary = bdev->split_on_optimal_io_boundary;
	info->md_interleaved = spdk_bdev_is_md_interleaved(bdev);
	info->write_cache = spdk_bdev_has_write_cache(bdev);
	info->zoned = spdk_bdev_is_zoned(bdev);
	for (type = 1; type < (uint32_t)SPDK_BDEV_NUM_IO_TYPES && type < 64; type++) {
		if (spdk_bdev_io_type_supported(bdev, (enum spdk_bdev_io_type)type)) {
			info->io_types |= UINT64_C(1) << type;
		}
	}
	if (!lends_buffers(bdev)) {
		info->io_types &= ~(UINT64_C(1) << SPDK_BDEV_IO_TYPE_ZCOPY);
	}
#if !PSC_SINCE(23, 1)
	/*
	 * The NVMe bdev of 20.07 ends a fused command once for each of its halves, where the device leaves
	 * dword 0 of the completion alone, as NVMe says. Without it the bdev layer makes a compare-and-write
	 * of a locked range, a read and a write.
	 */
	info->io_types &= ~(UINT64_C(1) << SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE);
#endif
}

static void
desc_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
	(void)bdev;
	psc_rust->psr_desc_event((uint32_t)type, ctx);
}

int
psc_desc_open(const char *name, bool write, void *event_ctx, struct spdk_bdev_desc **desc)
{
	int rc;

	/* Without this, SPDK logs an error; elsewhere the list must not be looked at without its lock. */
	if (spdk_get_thread() == psc_thread_app() && spdk_bdev_get_by_name(name) == NULL) {
		return -ENODEV;
	}
	rc = spdk_bdev_open_ext(name, write, desc_event, event_ctx, desc);
	/* Of 20.07, for "no such bdev". */
	return rc == -EINVAL ? -ENODEV : rc;
}

void
psc_desc_close(struct spdk_bdev_desc *desc)
{
	spdk_bdev_close(desc);
}

struct spdk_bdev *
psc_desc_bdev(struct spdk_bdev_desc *desc)
{
	return spdk_bdev_desc_get_bdev(desc);
}

int
psc_desc_claim(struct spdk_bdev_desc *desc)
{
	return spdk_bdev_module_claim_bdev(spdk_bdev_desc_get_bdev(desc), desc, &psc_module);
}

void
psc_desc_release(struct spdk_bdev_desc *desc)
{
	spdk_bdev_module_release_bdev(spdk_bdev_desc_get_bdev(desc));
}

struct spdk_io_channel *
psc_desc_get_channel(struct spdk_bdev_desc *desc)
{
	return spdk_bdev_get_io_channel(desc);
}

void
psc_channel_put(struct spdk_io_channel *ch)
{
	spdk_put_io_channel(ch);
}

/* ---- commands of our own ------------------------------------------------------------------------ */

void psc_status_of(const struct spdk_bdev_io *bdev_io, struct psc_status *status);

void
psc_status_of(const struct spdk_bdev_io *bdev_io, struct psc_status *status)
{
	int sct = 0, sc = 0;

	spdk_bdev_io_get_nvme_status(bdev_io, &status->cdw0, &sct, &sc);
	status->status = bdev_io->internal.status;
	status->error = 0;
	status->sct = (uint16_t)sct;
	status->sc = (uint16_t)sc;
}

static void
op_done(struct spdk_bdev_io *bdev_io, bool success, void *ctx)
{
	struct psc_op *op = ctx;

	psc_status_of(bdev_io, &op->status);
	if (op->type == PSC_IO_ZCOPY && op->zcopy_io == NULL && success) {
		op->zcopy_io = bdev_io;
		spdk_bdev_io_get_iovec(bdev_io, &op->iovs, &op->iovcnt);
	} else {
		op->zcopy_io = NULL;
		spdk_bdev_free_io(bdev_io);
	}
	op->cb(op);
}

static void
op_failed(void *ctx)
{
	struct psc_op *op = ctx;

	op->cb(op);
}

static void
op_retry(void *ctx)
{
	psc_op_submit(ctx);
}

/*
 * SPDK's NVMe bdev ends a flush without asking the device: always in 20.07, in current releases unless
 * bdev_nvme_set_options has enable_flush. What a device holds in a volatile cache would be lost with the
 * power, after it was said to be durable: so the device is sent NVMe's own command.
 */
int
psc_flush(struct spdk_bdev_desc *desc, struct spdk_io_channel *ch, uint64_t off, uint64_t num,
	  spdk_bdev_io_completion_cb cb, void *ctx)
{
	struct spdk_bdev *bdev = spdk_bdev_desc_get_bdev(desc);
	struct spdk_nvme_cmd cmd;

	if (!spdk_bdev_has_write_cache(bdev) || strcmp(bdev->module->name, "nvme") != 0) {
		return spdk_bdev_flush_blocks(desc, ch, off, num, cb, ctx);
	}
	memset(&cmd, 0, sizeof(cmd));
	cmd.opc = SPDK_NVME_OPC_FLUSH;
	/* The module fills in the namespace; the command is copied. */
	return spdk_bdev_nvme_io_passthru(desc, ch, &cmd, NULL, 0, cb, ctx);
}

void
psc_op_submit(struct psc_op *op)
{
	struct spdk_bdev_io_wait_entry *wait = (void *)op->wait;
	uint64_t off = op->offset_blocks, num = op->num_blocks;
	int rc;

	switch (op->type) {
	case PSC_IO_READ:
		rc = spdk_bdev_readv_blocks(op->desc, op->ch, op->iovs, op->iovcnt, off, num, op_done,
					    op);
		break;
	case PSC_IO_WRITE:
		rc = spdk_bdev_writev_blocks(op->desc, op->ch, op->iovs, op->iovcnt, off, num, op_done,
					     op);
		break;
	case PSC_IO_WRITE_ZEROES:
		rc = spdk_bdev_write_zeroes_blocks(op->desc, op->ch, off, num, op_done, op);
		break;
	case PSC_IO_UNMAP:
		rc = spdk_bdev_unmap_blocks(op->desc, op->ch, off, num, op_done, op);
		break;
	case PSC_IO_FLUSH:
		rc = psc_flush(op->desc, op->ch, off, num, op_done, op);
		break;
	case PSC_IO_RESET:
		rc = spdk_bdev_reset(op->desc, op->ch, op_done, op);
		break;
	case PSC_IO_COMPARE:
		rc = spdk_bdev_comparev_blocks(op->desc, op->ch, op->iovs, op->iovcnt, off, num,
					       op_done, op);
		break;
	case PSC_IO_ZCOPY:
		if (op->zcopy_io != NULL) {
			rc = spdk_bdev_zcopy_end(op->zcopy_io, op->zcopy_commit, op_done, op);
			break;
		}
#if PSC_SINCE(21, 7)
		rc = spdk_bdev_zcopy_start(op->desc, op->ch, NULL, 0, off, num, op->zcopy_populate,
					   op_done, op);
#else
		rc = spdk_bdev_zcopy_start(op->desc, op->ch, off, num, op->zcopy_populate, op_done,
					   op);
#endif
		break;
#if PSC_SINCE(23, 1)
	case PSC_IO_COPY:
		rc = spdk_bdev_copy_blocks(op->desc, op->ch, off, op->src_offset_blocks, num, op_done,
					   op);
		break;
#endif
	default:
		rc = -ENOTSUP;
		break;
	}
	if (rc == 0) {
		return;
	}
	if (rc == -ENOMEM) {
		memset(wait, 0, sizeof(*wait));
		wait->bdev = spdk_bdev_desc_get_bdev(op->desc);
		wait->cb_fn = op_retry;
		wait->cb_arg = op;
		if (spdk_bdev_queue_io_wait(wait->bdev, op->ch, wait) == 0) {
			return;
		}
		/* It was another resource that ran out: no one will call, so try again next round. */
		if (spdk_thread_send_msg(spdk_get_thread(), op_retry, op) == 0) {
			return;
		}
	}
	op->status.status = PSC_STATUS_FAILED;
	op->status.error = rc;
	op->status.sct = SPDK_NVME_SCT_GENERIC;
	op->status.sc = SPDK_NVME_SC_INTERNAL_DEVICE_ERROR;
	if (spdk_thread_send_msg(spdk_get_thread(), op_failed, op) != 0) {
		/* Out of message objects: the process cannot go on in any case. */
		abort();
	}
}
