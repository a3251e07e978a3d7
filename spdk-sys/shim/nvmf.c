/* Exporting over NVMe-oF. */
#include "compat.h"

static struct spdk_nvmf_tgt *
target(void)
{
	return spdk_nvmf_get_first_tgt();
}

bool
psc_nvmf_have_transport(const char *trtype)
{
	return target() != NULL && spdk_nvmf_tgt_get_transport(target(), trtype) != NULL;
}

struct waiter {
	psc_done_fn done;
	void *ctx;
};

static struct waiter *
waiter_new(psc_done_fn done, void *ctx)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	if (waiter != NULL) {
		waiter->done = done;
		waiter->ctx = ctx;
	}
	return waiter;
}

static void
waiter_done(void *ctx, int status)
{
	struct waiter waiter = *(struct waiter *)ctx;

	free(ctx);
	waiter.done(waiter.ctx, status);
}

static void
state_done(struct spdk_nvmf_subsystem *s, void *ctx, int status)
{
	(void)s;
	waiter_done(ctx, status);
}

#if PSC_SINCE(23, 5)
static void
transport_created(void *ctx, struct spdk_nvmf_transport *transport)
{
	if (transport == NULL) {
		waiter_done(ctx, -EIO);
		return;
	}
	spdk_nvmf_tgt_add_transport(target(), transport, waiter_done, ctx);
}
#endif

int
psc_nvmf_transport_create(const char *trtype, psc_done_fn done, void *ctx)
{
	struct spdk_nvmf_transport_opts opts;
	struct waiter *waiter;
	bool ok;

	if (target() == NULL) {
		return -ENODEV;
	}
	memset(&opts, 0, sizeof(opts));
#if PSC_SINCE(21, 1)
	ok = spdk_nvmf_transport_opts_init(trtype, &opts, sizeof(opts));
#else
	ok = spdk_nvmf_transport_opts_init(trtype, &opts);
#endif
	if (!ok) {
		return -EPROTONOSUPPORT;
	}
	waiter = waiter_new(done, ctx);
	if (waiter == NULL) {
		return -ENOMEM;
	}
#if PSC_SINCE(23, 5)
	{
		int rc = spdk_nvmf_transport_create_async(trtype, &opts, transport_created, waiter);

		if (rc != 0) {
			free(waiter);
		}
		return rc;
	}
#else
	{
		struct spdk_nvmf_transport *transport = spdk_nvmf_transport_create(trtype, &opts);

		if (transport == NULL) {
			free(waiter);
			return -EIO;
		}
		spdk_nvmf_tgt_add_transport(target(), transport, waiter_done, waiter);
		return 0;
	}
#endif
}

struct spdk_nvmf_subsystem *
psc_nvmf_subsystem_find(const char *nqn)
{
	return target() == NULL ? NULL : spdk_nvmf_tgt_find_subsystem(target(), nqn);
}

int
psc_nvmf_subsystem_create(const char *nqn, const char *serial, const char *model,
			  uint32_t max_namespaces, struct spdk_nvmf_subsystem **out)
{
	struct spdk_nvmf_subsystem *s;

	if (target() == NULL) {
		return -ENODEV;
	}
	if (spdk_nvmf_tgt_find_subsystem(target(), nqn) != NULL) {
		return -EEXIST;
	}
#if PSC_SINCE(26, 5)
	struct spdk_nvmf_subsystem_opts opts;

	spdk_nvmf_subsystem_opts_init(SPDK_NVMF_SUBTYPE_NVME, &opts, sizeof(opts));
	opts.max_namespaces = max_namespaces;
	snprintf(opts.sn, sizeof(opts.sn), "%s", serial);
	snprintf(opts.mn, sizeof(opts.mn), "%s", model);
	s = spdk_nvmf_subsystem_create_ext(target(), nqn, SPDK_NVMF_SUBTYPE_NVME, &opts);
	if (s == NULL) {
		return -EINVAL;
	}
#else
	s = spdk_nvmf_subsystem_create(target(), nqn, SPDK_NVMF_SUBTYPE_NVME, max_namespaces);
	if (s == NULL) {
		return -EINVAL;
	}
	if (spdk_nvmf_subsystem_set_sn(s, serial) != 0 ||
	    spdk_nvmf_subsystem_set_mn(s, model) != 0) {
#if PSC_SINCE(21, 10)
		spdk_nvmf_subsystem_destroy(s, NULL, NULL);
#else
		spdk_nvmf_subsystem_destroy(s);
#endif
		return -EINVAL;
	}
#endif
	*out = s;
	return 0;
}

int
psc_nvmf_subsystem_allow_any_host(struct spdk_nvmf_subsystem *s, bool allow)
{
	return spdk_nvmf_subsystem_set_allow_any_host(s, allow);
}

int
psc_nvmf_subsystem_add_host(struct spdk_nvmf_subsystem *s, const char *nqn)
{
#if PSC_SINCE(23, 5)
	return spdk_nvmf_subsystem_add_host(s, nqn, NULL);
#else
	return spdk_nvmf_subsystem_add_host(s, nqn);
#endif
}

int
psc_nvmf_subsystem_add_ns(struct spdk_nvmf_subsystem *s, const struct psc_nvmf_ns *ns, uint32_t *nsid)
{
	struct spdk_nvmf_ns_opts opts;

	spdk_nvmf_ns_opts_get_defaults(&opts, sizeof(opts));
	opts.nsid = ns->nsid;
	memcpy(opts.nguid, ns->nguid, sizeof(opts.nguid));
	memcpy(opts.eui64, ns->eui64, sizeof(opts.eui64));
	memcpy(&opts.uuid, ns->uuid, sizeof(opts.uuid));
#if PSC_SINCE(20, 10)
	*nsid = spdk_nvmf_subsystem_add_ns_ext(s, ns->bdev_name, &opts, sizeof(opts), NULL);
#else
	struct spdk_bdev *bdev = spdk_bdev_get_by_name(ns->bdev_name);

	if (bdev == NULL) {
		return -ENODEV;
	}
	*nsid = spdk_nvmf_subsystem_add_ns(s, bdev, &opts, sizeof(opts), NULL);
#endif
	return *nsid == 0 ? -EINVAL : 0;
}

int
psc_nvmf_subsystem_remove_ns(struct spdk_nvmf_subsystem *s, uint32_t nsid)
{
	return spdk_nvmf_subsystem_remove_ns(s, nsid) == 0 ? 0 : -ENOENT;
}

const char *
psc_nvmf_subsystem_next_ns(struct spdk_nvmf_subsystem *s, uint32_t *nsid)
{
	struct spdk_nvmf_ns *ns;

	for (ns = spdk_nvmf_subsystem_get_first_ns(s); ns != NULL;
	     ns = spdk_nvmf_subsystem_get_next_ns(s, ns)) {
		if (spdk_nvmf_ns_get_id(ns) >= *nsid) {
			*nsid = spdk_nvmf_ns_get_id(ns);
			return spdk_bdev_get_name(spdk_nvmf_ns_get_bdev(ns));
		}
	}
	return NULL;
}

static bool
is_discovery(struct spdk_nvmf_subsystem *s)
{
#if PSC_SINCE(23, 9)
	return spdk_nvmf_subsystem_is_discovery(s);
#else
	return spdk_nvmf_subsystem_get_type(s) != SPDK_NVMF_SUBTYPE_NVME;
#endif
}

struct spdk_nvmf_subsystem *
psc_nvmf_subsystem_next(struct spdk_nvmf_subsystem *s)
{
	struct spdk_nvmf_tgt *tgt = target();

	if (tgt == NULL) {
		return NULL;
	}
	s = s == NULL ? spdk_nvmf_subsystem_get_first(tgt) : spdk_nvmf_subsystem_get_next(s);
	while (s != NULL && is_discovery(s)) {
		s = spdk_nvmf_subsystem_get_next(s);
	}
	return s;
}

const char *
psc_nvmf_subsystem_nqn(struct spdk_nvmf_subsystem *s)
{
	return spdk_nvmf_subsystem_get_nqn(s);
}

const char *
psc_nvmf_subsystem_model(struct spdk_nvmf_subsystem *s)
{
#if PSC_SINCE(26, 5)
	return spdk_nvmf_subsystem_get_opts(s)->mn;
#else
	return spdk_nvmf_subsystem_get_mn(s);
#endif
}

bool
psc_nvmf_subsystem_any_host(struct spdk_nvmf_subsystem *s)
{
	return spdk_nvmf_subsystem_get_allow_any_host(s);
}

bool
psc_nvmf_subsystem_host(struct spdk_nvmf_subsystem *s, uint32_t i, const char **nqn)
{
	struct spdk_nvmf_host *host = spdk_nvmf_subsystem_get_first_host(s);

	while (host != NULL && i-- > 0) {
		host = spdk_nvmf_subsystem_get_next_host(s, host);
	}
	if (host == NULL) {
		return false;
	}
	*nqn = spdk_nvmf_host_get_nqn(host);
	return true;
}

bool
psc_nvmf_subsystem_listener(struct spdk_nvmf_subsystem *s, uint32_t i, struct psc_nvmf_addr *addr)
{
	struct spdk_nvmf_subsystem_listener *listener = spdk_nvmf_subsystem_get_first_listener(s);
	const struct spdk_nvme_transport_id *trid;

	while (listener != NULL && i-- > 0) {
		listener = spdk_nvmf_subsystem_get_next_listener(s, listener);
	}
	if (listener == NULL) {
		return false;
	}
	trid = spdk_nvmf_subsystem_listener_get_trid(listener);
	addr->trtype = trid->trstring;
	addr->adrfam = spdk_nvme_transport_id_adrfam_str(trid->adrfam);
	addr->traddr = trid->traddr;
	addr->trsvcid = trid->trsvcid;
	return true;
}

int
psc_nvmf_subsystem_listen(struct spdk_nvmf_subsystem *s, const struct psc_nvmf_addr *addr,
			  psc_done_fn done, void *ctx)
{
	struct spdk_nvme_transport_id trid;
	struct waiter *waiter;
	int rc;

	memset(&trid, 0, sizeof(trid));
	if (spdk_nvme_transport_id_populate_trstring(&trid, addr->trtype) != 0 ||
	    spdk_nvme_transport_id_parse_trtype(&trid.trtype, addr->trtype) != 0 ||
	    spdk_nvme_transport_id_parse_adrfam(&trid.adrfam, addr->adrfam) != 0 ||
	    strlen(addr->traddr) >= sizeof(trid.traddr) ||
	    strlen(addr->trsvcid) >= sizeof(trid.trsvcid)) {
		return -EINVAL;
	}
	memcpy(trid.traddr, addr->traddr, strlen(addr->traddr) + 1);
	memcpy(trid.trsvcid, addr->trsvcid, strlen(addr->trsvcid) + 1);
	if (target() == NULL) {
		return -ENODEV;
	}
	waiter = waiter_new(done, ctx);
	if (waiter == NULL) {
		return -ENOMEM;
	}
#if PSC_SINCE(21, 1)
	struct spdk_nvmf_listen_opts opts;

	spdk_nvmf_listen_opts_init(&opts, sizeof(opts));
	rc = spdk_nvmf_tgt_listen_ext(target(), &trid, &opts);
#else
	rc = spdk_nvmf_tgt_listen(target(), &trid);
#endif
	if (rc != 0) {
		free(waiter);
		return rc < 0 ? rc : -EINVAL;
	}
	spdk_nvmf_subsystem_add_listener(s, &trid, waiter_done, waiter);
	return 0;
}

typedef int (*state_fn)(struct spdk_nvmf_subsystem *s, spdk_nvmf_subsystem_state_change_done done,
			void *ctx);

static int
change_state(struct spdk_nvmf_subsystem *s, state_fn fn, psc_done_fn done, void *ctx)
{
	struct waiter *waiter = waiter_new(done, ctx);
	int rc;

	if (waiter == NULL) {
		return -ENOMEM;
	}
	rc = fn(s, state_done, waiter);
	if (rc != 0) {
		free(waiter);
	}
	return rc;
}

int
psc_nvmf_subsystem_start(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx)
{
	return change_state(s, spdk_nvmf_subsystem_start, done, ctx);
}

int
psc_nvmf_subsystem_stop(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx)
{
	return change_state(s, spdk_nvmf_subsystem_stop, done, ctx);
}

int
psc_nvmf_subsystem_pause(struct spdk_nvmf_subsystem *s, uint32_t nsid, psc_done_fn done, void *ctx)
{
	struct waiter *waiter = waiter_new(done, ctx);
	int rc;

	if (waiter == NULL) {
		return -ENOMEM;
	}
#if PSC_SINCE(21, 1)
	rc = spdk_nvmf_subsystem_pause(s, nsid, state_done, waiter);
#else
	(void)nsid; /* 20.07 pauses all of them */
	rc = spdk_nvmf_subsystem_pause(s, state_done, waiter);
#endif
	if (rc != 0) {
		free(waiter);
	}
	return rc;
}

int
psc_nvmf_subsystem_resume(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx)
{
	return change_state(s, spdk_nvmf_subsystem_resume, done, ctx);
}

#if PSC_SINCE(21, 10)
static void
destroyed(void *ctx)
{
	waiter_done(ctx, 0);
}
#endif

int
psc_nvmf_subsystem_destroy(struct spdk_nvmf_subsystem *s, psc_done_fn done, void *ctx)
{
#if PSC_SINCE(21, 10)
	struct waiter *waiter = waiter_new(done, ctx);
	int rc;

	if (waiter == NULL) {
		return -ENOMEM;
	}
	rc = spdk_nvmf_subsystem_destroy(s, destroyed, waiter);
	if (rc == -EINPROGRESS) {
		return 0;
	}
	free(waiter);
	if (rc != 0) {
		return rc;
	}
#else
	spdk_nvmf_subsystem_destroy(s);
#endif
	done(ctx, 0);
	return 0;
}

/* ---- Identify ----------------------------------------------------------------------------------- */

#define IDENTIFY_BYTES 4096
/* NVM Express Base 1.4, figure 245: NSATTR is byte 99, bit 0 "currently write protected". */
#define NSATTR_BYTE 99

static int
identify(struct spdk_nvmf_request *req)
{
	struct spdk_nvme_cmd *cmd = spdk_nvmf_request_get_cmd(req);
	struct spdk_nvmf_ns *ns;
	struct spdk_bdev *bdev;
	int rc;

	/* Anything negative: SPDK goes on with its own handler, as if this one did not exist. */
	if (cmd->cdw10_bits.identify.cns != SPDK_NVME_IDENTIFY_NS) {
		return -1;
	}
	ns = spdk_nvmf_subsystem_get_ns(spdk_nvmf_request_get_subsystem(req), cmd->nsid);
	if (ns == NULL) {
		return -1;
	}
	bdev = spdk_nvmf_ns_get_bdev(ns);
	if (bdev == NULL || !psc_bdev_is_read_only(bdev)) {
		return -1;
	}
#if PSC_SINCE(23, 5)
	{
		struct spdk_nvme_ns_data data;

		SPDK_STATIC_ASSERT(sizeof(data) == IDENTIFY_BYTES, "Identify Namespace");
		memset(&data, 0, sizeof(data));
		rc = spdk_nvmf_ctrlr_identify_ns(spdk_nvmf_request_get_ctrlr(req), cmd,
						 spdk_nvmf_request_get_response(req), &data);
		((uint8_t *)&data)[NSATTR_BYTE] |= 1;
		spdk_nvmf_request_copy_from_buf(req, &data, sizeof(data));
	}
#else
	{
		void *data;
		uint32_t len;

		spdk_nvmf_request_get_data(req, &data, &len);
		if (data == NULL || len < IDENTIFY_BYTES) {
			return -1;
		}
		rc = spdk_nvmf_ctrlr_identify_ns(spdk_nvmf_request_get_ctrlr(req), cmd,
						 spdk_nvmf_request_get_response(req), data);
		((uint8_t *)data)[NSATTR_BYTE] |= 1;
	}
#endif
	return rc;
}

void
psc_nvmf_install_identify(void)
{
	spdk_nvmf_set_custom_admin_cmd_hdlr(SPDK_NVME_OPC_IDENTIFY, identify);
}
