/* Commands to the devices of our own bdev module: how they are sent on, and how they end. */
#include "compat.h"

void psc_status_of(const struct spdk_bdev_io *bdev_io, struct psc_status *status);

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

	if (spdk_likely(success && io->base_mode == PSC_FORWARD_PASS)) {
		spdk_bdev_io_complete(outer(io), SPDK_BDEV_IO_STATUS_SUCCESS);
		spdk_bdev_free_io(base);
		return;
	}
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
		rc = psc_flush(desc, ch, off, num, forward_done, io);
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

struct spdk_thread *
psc_io_thread(struct psc_io *io)
{
	return spdk_bdev_io_get_thread(outer(io));
}
