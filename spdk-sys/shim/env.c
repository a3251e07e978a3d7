/* Environment, threads, pollers, app. */
#include "compat.h"

const struct psr_calls *psc_rust;

void
psc_set_rust(const struct psr_calls *calls)
{
	psc_rust = calls;
}

const char *
psc_spdk_version_string(void)
{
	return SPDK_VERSION_STRING;
}

uint64_t
psc_ticks(void)
{
	return spdk_get_ticks();
}

uint64_t
psc_ticks_hz(void)
{
	return spdk_get_ticks_hz();
}

uint64_t
psc_os_thread_cpu_ns(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) != 0) {
		return 0;
	}
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void *
psc_dma_zmalloc(size_t len, size_t align)
{
	/* SPDK_ENV_SOCKET_ID_ANY until 24.05, SPDK_ENV_NUMA_ID_ANY after; both are -1. */
	return spdk_zmalloc(len, align, NULL, -1, SPDK_MALLOC_DMA);
}

void
psc_dma_free(void *buf)
{
	spdk_free(buf);
}

static bool
cpu_is_reactor(uint32_t cpu)
{
	uint32_t core;

	SPDK_ENV_FOREACH_CORE(core) {
		if (core == cpu) {
			return true;
		}
	}
	return false;
}

struct spdk_thread *
psc_thread_current(void)
{
	return spdk_get_thread();
}

/* Set when the bdev module is initialized, which SPDK does on the app thread. */
static struct spdk_thread *g_app_thread;

struct spdk_thread *
psc_thread_app(void)
{
#if PSC_SINCE(23, 1)
	return spdk_thread_get_app_thread();
#else
	return g_app_thread;
#endif
}

void psc_env_note_app_thread(void);

void
psc_env_note_app_thread(void)
{
	g_app_thread = spdk_get_thread();
}

const char *
psc_thread_name(const struct spdk_thread *thread)
{
	return spdk_thread_get_name(thread);
}

int
psc_thread_send(const struct spdk_thread *thread, psc_msg_fn fn, void *ctx)
{
	return spdk_thread_send_msg(thread, fn, ctx);
}

void
psc_thread_for_each(psc_msg_fn fn, void *ctx, psc_msg_fn done)
{
	spdk_for_each_thread(fn, ctx, done);
}

struct spdk_poller *
psc_poller_register(psc_poller_fn fn, void *ctx, uint64_t period_us, const char *name)
{
	return spdk_poller_register_named(fn, ctx, period_us, name);
}

void
psc_poller_unregister(struct spdk_poller *poller)
{
	spdk_poller_unregister(&poller);
}

/* Before the environment pins this thread to a reactor's CPU. */
static cpu_set_t g_start_cpus;

int
psc_os_thread_set_cpus(const uint32_t *cpus, size_t count)
{
	cpu_set_t set;
	uint32_t cpu;
	size_t i;

	CPU_ZERO(&set);
	for (i = 0; i < count; i++) {
		CPU_SET(cpus[i], &set);
	}
	if (count == 0) {
		for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
			if (CPU_ISSET(cpu, &g_start_cpus) && !cpu_is_reactor(cpu)) {
				CPU_SET(cpu, &set);
			}
		}
		if (CPU_COUNT(&set) == 0) {
			set = g_start_cpus;
		}
	}
	/* pid 0: the calling thread */
	return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : -errno;
}

uint32_t
psc_reactor_cpu(void)
{
	/* UINT32_MAX (LCORE_ID_ANY) off the reactors. */
	return spdk_env_get_current_core();
}

void
psc_exit_now(int status)
{
	_exit(status);
}

static void
app_shutdown(void)
{
	psc_rust->psr_app_shutdown();
}

static void
app_started(void *ctx)
{
	psc_env_note_app_thread();
	psc_rust->psr_app_started(ctx);
}

void
psc_umask_private(void)
{
	umask(0077);
}

int
psc_app_run(const struct psc_app_opts *in, void *ctx)
{
	struct spdk_app_opts opts;
	int rc;

	if (sched_getaffinity(0, sizeof(g_start_cpus), &g_start_cpus) != 0) {
		return -errno;
	}
#if PSC_SINCE(21, 1)
	spdk_app_opts_init(&opts, sizeof(opts));
#else
	spdk_app_opts_init(&opts);
#endif
	opts.name = in->name;
	opts.json_config_file = in->json_config;
	opts.rpc_addr = in->rpc_addr;
	if (in->reactor_mask != NULL) {
		opts.reactor_mask = in->reactor_mask;
	}
	if (in->env_args != NULL) {
		/* The field is void *, but only ever read, as a string. */
		opts.env_context = (void *)(uintptr_t)in->env_args;
	}
	if (in->mem_mib >= 0) {
		opts.mem_size = in->mem_mib;
	}
	opts.shm_id = in->shm_id;
	if (in->trace_entries >= 0) {
		opts.num_entries = (uint64_t)in->trace_entries;
	}
	opts.no_pci = in->no_pci;
	opts.hugepage_single_segments = in->single_file_segments;
	opts.delay_subsystem_init = in->delay_subsystem_init;
	opts.print_level = in->quiet ? SPDK_LOG_WARN : SPDK_LOG_NOTICE;
	/* Else SPDK lifts the limit on core dumps; that is for the user (ulimit -c) to decide. */
	opts.enable_coredump = false;
	opts.shutdown_cb = app_shutdown;
#if PSC_SINCE(24, 1)
	opts.no_huge = in->no_huge;
#else
	if (in->no_huge) {
		return -ENOTSUP;
	}
#endif
	rc = spdk_app_start(&opts, app_started, ctx);
	spdk_app_fini();
	return rc;
}

void
psc_app_stop(int rc)
{
	spdk_app_stop(rc);
}
