/*
 * Where another OS thread is: it is sent a signal, and copies its registers and its stack. What they mean is found out
 * by others, from the copy.
 */
#include "compat.h"

#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

/* Ignored by default, and nothing here asks sockets for it: a stray one does no harm. */
#define STACK_SIGNAL SIGURG

/* What a function without calls may use below its stack pointer, on x86-64. */
#define RED_ZONE 128

enum { IDLE, ASKED, WRITING, WRITTEN };

/*
 * What the handler needs of its own OS thread. Initial-exec: in the block of memory that every thread has from its
 * start, so that nothing is allocated when the handler comes to it first.
 */
static __thread struct {
	struct psc_stack *place; /* NULL: the rest is not set, or just being changed */
	const uint64_t *mark;
	uint64_t low;
	uint64_t end;
	int32_t id;
} t_self __attribute__((tls_model("initial-exec")));

void
psc_stack_copy(struct psc_stack *stack, uint64_t sp, uint64_t low, uint64_t end)
{
	uint64_t from;
	uint32_t count = 0;

	stack->from = 0;
	stack->count = 0;
	if (sp < low || sp >= end) {
		/* It was on another stack. */
		return;
	}
	from = sp - low > RED_ZONE ? sp - RED_ZONE : low;
	from = (from + 7) & ~(uint64_t)7;
	stack->from = from;
	while (count < PSC_STACK_WORDS_MAX && from < end && end - from >= 8) {
		/* Volatile, so that the compiler makes no call of it. */
		stack->words[count++] = *(const volatile uint64_t *)(uintptr_t)from;
		from += 8;
	}
	stack->count = count;
}

static void
copy_registers(struct psc_stack *stack, const ucontext_t *context)
{
#if defined(__x86_64__)
	static const uint8_t by_dwarf[] = {
		REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP,
		REG_R8,	 REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
	};

	for (size_t i = 0; i < SPDK_COUNTOF(by_dwarf); i++) {
		stack->registers[i] = (uint64_t)context->uc_mcontext.gregs[by_dwarf[i]];
	}
	stack->sp = (uint64_t)context->uc_mcontext.gregs[REG_RSP];
	stack->pc = (uint64_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
	for (size_t i = 0; i < 31; i++) {
		stack->registers[i] = context->uc_mcontext.regs[i];
	}
	stack->registers[31] = context->uc_mcontext.sp;
	stack->sp = context->uc_mcontext.sp;
	stack->pc = context->uc_mcontext.pc;
#else
	(void)context;
	stack->sp = 0;
	stack->pc = 0;
#endif
}

/*
 * Anywhere in the thread's code, also in the middle of malloc() or of the loader: no lock, no memory, no function of any
 * library, and errno is not touched.
 */
static void
write_stack(int signo, siginfo_t *info, void *context)
{
	struct psc_stack *stack = t_self.place;
	uint32_t asked = ASKED;

	(void)signo;
	(void)info;
	if (stack == NULL || __atomic_load_n(&stack->state, __ATOMIC_ACQUIRE) != ASKED ||
	    stack->os_thread != t_self.id ||
	    !__atomic_compare_exchange_n(&stack->state, &asked, WRITING, false, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED)) {
		return;
	}
	stack->mark = __atomic_load_n(t_self.mark, __ATOMIC_RELAXED);
	copy_registers(stack, context);
	psc_stack_copy(stack, stack->sp, t_self.low, t_self.end);
	__atomic_store_n(&stack->state, WRITTEN, __ATOMIC_RELEASE);
}

int
psc_stack_install(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	sigemptyset(&action.sa_mask);
	action.sa_sigaction = write_stack;
	/* System calls that can go on do. */
	action.sa_flags = SA_SIGINFO | SA_RESTART;
	return sigaction(STACK_SIGNAL, &action, NULL) == 0 ? 0 : -errno;
}

/* Takes a while, and locks: not for the handler. */
static void
find_own_stack(void)
{
	pthread_attr_t attr;
	void *low;
	size_t size;

	t_self.id = (int32_t)syscall(SYS_gettid);
	if (pthread_getattr_np(pthread_self(), &attr) != 0) {
		return;
	}
	if (pthread_attr_getstack(&attr, &low, &size) == 0) {
		t_self.low = (uint64_t)(uintptr_t)low;
		t_self.end = t_self.low + size;
	}
	pthread_attr_destroy(&attr);
}

int32_t
psc_stack_of_this_thread(struct psc_stack *stack, const uint64_t *mark)
{
	if (spdk_likely(t_self.place == stack)) {
		return t_self.id;
	}
	/* The handler may come between any two of these. */
	t_self.place = NULL;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (t_self.id == 0) {
		find_own_stack();
	}
	t_self.mark = mark;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	t_self.place = stack;
	return t_self.id;
}

int
psc_stack_ask(struct psc_stack *stack, int32_t os_thread)
{
	uint32_t state = __atomic_load_n(&stack->state, __ATOMIC_ACQUIRE);

	if (state == ASKED || state == WRITING) {
		return -EBUSY;
	}
	stack->os_thread = os_thread;
	__atomic_store_n(&stack->state, ASKED, __ATOMIC_RELEASE);
	if (syscall(SYS_tgkill, getpid(), os_thread, STACK_SIGNAL) != 0) {
		/* There is no such thread any more, so nobody writes. */
		__atomic_store_n(&stack->state, IDLE, __ATOMIC_RELEASE);
		return -errno;
	}
	return 0;
}

bool
psc_stack_take(struct psc_stack *stack)
{
	uint32_t written = WRITTEN;

	return __atomic_compare_exchange_n(&stack->state, &written, IDLE, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

struct search {
	uint64_t pc;
	struct psc_unwind_tables *found;
};

static bool
contains(const struct dl_phdr_info *info, const ElfW(Phdr) * header, uint64_t address)
{
	return header->p_type == PT_LOAD && address - (info->dlpi_addr + header->p_vaddr) < header->p_memsz;
}

static int
look_into(struct dl_phdr_info *info, size_t size, void *arg)
{
	const ElfW(Phdr) *headers = info->dlpi_phdr, *tables = NULL;
	struct search *search = arg;
	bool here = false;

	(void)size;
	for (size_t i = 0; i < info->dlpi_phnum; i++) {
		here |= contains(info, &headers[i], search->pc);
		if (headers[i].p_type == PT_GNU_EH_FRAME) {
			tables = &headers[i];
		}
	}
	if (!here || tables == NULL) {
		return here;
	}
	for (size_t i = 0; i < info->dlpi_phnum; i++) {
		uint64_t header = info->dlpi_addr + tables->p_vaddr;

		if (contains(info, &headers[i], header) && !(headers[i].p_flags & PF_W)) {
			search->found->header = header;
			search->found->header_len = tables->p_memsz;
			search->found->segment = info->dlpi_addr + headers[i].p_vaddr;
			search->found->segment_len = headers[i].p_memsz;
		}
	}
	return 1;
}

bool
psc_unwind_tables_at(uint64_t pc, struct psc_unwind_tables *tables)
{
	struct search search = {.pc = pc, .found = tables};

	memset(tables, 0, sizeof(*tables));
	dl_iterate_phdr(look_into, &search);
	return tables->segment_len != 0;
}
