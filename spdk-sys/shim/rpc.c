/* JSON writing and JSON-RPC methods. */
#include "compat.h"

int
psc_json_name(struct spdk_json_write_ctx *w, const char *name, size_t len)
{
	return spdk_json_write_name_raw(w, name, len);
}

int
psc_json_raw(struct spdk_json_write_ctx *w, const char *text, size_t len)
{
	return spdk_json_write_val_raw(w, text, len);
}

struct text {
	char *data;
	size_t len;
	size_t room;
};

static int
text_append(void *ctx, const void *data, size_t len)
{
	struct text *text = ctx;

	if (text->len + len > text->room) {
		size_t room = (text->len + len) * 2;
		char *grown = realloc(text->data, room);

		if (grown == NULL) {
			return -1;
		}
		text->data = grown;
		text->room = room;
	}
	memcpy(text->data + text->len, data, len);
	text->len += len;
	return 0;
}

static void
rpc_call(uint32_t slot, struct spdk_jsonrpc_request *request, const struct spdk_json_val *params)
{
	struct text text = { NULL, 0, 0 };

	if (params != NULL) {
		struct spdk_json_write_ctx *w = spdk_json_write_begin(text_append, &text, 0);
		int rc = -1;

		if (w != NULL) {
			rc = spdk_json_write_val(w, params);
			/* Flushes and frees, also after an error. */
			rc |= spdk_json_write_end(w);
		}
		if (rc != 0) {
			free(text.data);
			spdk_jsonrpc_send_error_response(request, SPDK_JSONRPC_ERROR_INVALID_PARAMS,
							 "Parameters could not be read");
			return;
		}
	}
	psc_rust->psr_rpc(slot, request, text.data, text.len);
	free(text.data);
}

/* A handler of 20.07 gets no context, so each method needs a C function of its own. */
#define SLOTS_8(X, a) X(a##0) X(a##1) X(a##2) X(a##3) X(a##4) X(a##5) X(a##6) X(a##7)
#define SLOTS_64(X) \
	SLOTS_8(X, 00) SLOTS_8(X, 01) SLOTS_8(X, 02) SLOTS_8(X, 03) \
	SLOTS_8(X, 04) SLOTS_8(X, 05) SLOTS_8(X, 06) SLOTS_8(X, 07)
#define SLOT_FN(n) \
	static void rpc_slot_##n(struct spdk_jsonrpc_request *request, \
				 const struct spdk_json_val *params) \
	{ \
		rpc_call(n, request, params); \
	}
#define SLOT_ENTRY(n) [n] = rpc_slot_##n,

/* The numbers are octal: 0000, 0001, ... 0077. */
SLOTS_64(SLOT_FN)

static const spdk_rpc_method_handler g_slots[PSC_RPC_SLOTS_MAX] = { SLOTS_64(SLOT_ENTRY) };

int
psc_rpc_register(const char *method, uint32_t slot, bool startup, bool runtime)
{
	uint32_t states = (startup ? SPDK_RPC_STARTUP : 0U) | (runtime ? SPDK_RPC_RUNTIME : 0U);

	if (slot >= PSC_RPC_SLOTS_MAX) {
		return -ENOSPC;
	}
	spdk_rpc_register_method(method, g_slots[slot], states);
	return 0;
}

void
psc_rpc_reply_result(struct spdk_jsonrpc_request *request, const char *text, size_t len)
{
	struct spdk_json_write_ctx *w = spdk_jsonrpc_begin_result(request);

	if (w == NULL) {
		return; /* 20.07: a notification; SPDK has freed the request */
	}
	spdk_json_write_val_raw(w, text, len);
	spdk_jsonrpc_end_result(request, w);
}

void
psc_rpc_reply_error(struct spdk_jsonrpc_request *request, int code, const char *message)
{
	spdk_jsonrpc_send_error_response(request, code, message);
}
