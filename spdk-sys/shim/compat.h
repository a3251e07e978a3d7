/* What the shim's files share; not for Rust. */
#ifndef PRESNAP_COMPAT_H
#define PRESNAP_COMPAT_H

#include "psc.h"

#include "spdk/stdinc.h"
#include "spdk/bdev.h"
#include "spdk/bdev_module.h"
#include "spdk/env.h"
#include "spdk/event.h"
#include "spdk/json.h"
#include "spdk/jsonrpc.h"
#include "spdk/likely.h"
#include "spdk/log.h"
#include "spdk/nvmf.h"
#include "spdk/nvmf_cmd.h"
#include "spdk/rpc.h"
#include "spdk/string.h"
#include "spdk/thread.h"
#include "spdk/uuid.h"
#include "spdk/version.h"

/*
 * Oldest and newest SPDK this shim knows. In between, the switches below name the release that
 * changed a function, as its CHANGELOG does.
 */
#if SPDK_VERSION < SPDK_VERSION_NUM(20, 7, 0)
#error "presnap needs SPDK v20.07 or newer"
#endif

#define PSC_SINCE(major, minor) (SPDK_VERSION >= SPDK_VERSION_NUM(major, minor, 0))

extern const struct psr_calls *psc_rust;
extern struct spdk_bdev_module psc_module;

int psc_flush(struct spdk_bdev_desc *desc, struct spdk_io_channel *ch, uint64_t off, uint64_t num,
	      spdk_bdev_io_completion_cb cb, void *ctx);

#endif
