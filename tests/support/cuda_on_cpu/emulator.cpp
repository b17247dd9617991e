// The scheduler under emulator.h: runs the CUDA threads of a block as fibers of one CPU thread.
//
//   run() --> run_block() --> resume(lane) --switch--> lane_entry(): the kernel, for one CUDA thread
//                  ^                                        |
//                  +---------- give_way() <-- barrier, shuffle, vote: wait for the others
//
// Compiled without a sanitizer and linked to kernels compiled with one: what happens here is no
// part of their memory accesses. ThreadSanitizer is told about each fiber and about the order that
// barriers give, and about no other order, so it finds a race whatever order the seed chose. It
// cannot see races between blocks: those show as results that depend on the order of blocks.
#include "emulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef CUEMU_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#ifdef CUEMU_ADDRESS_SANITIZER
extern "C" void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
#endif
#if defined(CUEMU_UCONTEXT) || !defined(__x86_64__)
#include <ucontext.h>
#define CUEMU_PORTABLE
#endif

namespace cuemu {

const Indices* current;
void* dynamic_shared;

namespace {

constexpr unsigned max_lanes = 1024;
constexpr size_t stack_bytes = 256 << 10;  // touched lazily, so only what is used costs memory
constexpr size_t max_shared_bytes = 48 << 10;

void lane_entry();

// ---- switching stacks: swapcontext() makes system calls, a few pushes do not ----------------------

#ifdef CUEMU_PORTABLE
typedef ucontext_t Context;
void switch_stack(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare_stack(Context& context, char* stack) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, lane_entry, 0);
}
#else
typedef void* Context;  // the stack pointer; the six registers that a call preserves lie on the stack
asm(R"(
.text
.local cuemu_switch_stack
.type cuemu_switch_stack, @function
cuemu_switch_stack:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size cuemu_switch_stack, . - cuemu_switch_stack
)");
extern "C" void cuemu_switch_stack(Context* from, Context* to);
void switch_stack(Context& from, Context& to) { cuemu_switch_stack(&from, &to); }
void prepare_stack(Context& context, char* stack) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes) - 2;  // `ret` leaves it as a call does
    *top = reinterpret_cast<void*>(lane_entry);
    memset(top - 6, 0, 6 * sizeof *top);
    context = top - 6;
}
#endif

// ---- one block ----------------------------------------------------------------------------------------

struct Lane {  // one CUDA thread
    Indices indices;
    Context context;
    void* sanitizer_fiber;
    bool exited, waiting;
    unsigned mask;  // of the exchange that it waits in; 0 outside one
    Site site;
    unsigned long long brought, received[32];
    bool parity;  // which of its two places below it uses next
    char order[2];  // only addresses count: ThreadSanitizer keeps an order for each
};

struct Block {
    unsigned num_lanes, num_live, num_at_barrier;
    Site barrier_site;
    int votes, result;  // of the barrier that fills, and of the last one that was complete
    bool parity;
    char order[2];
};

Lane lanes[max_lanes];
Block block;
Lane* me;
Context scheduler;
void* scheduler_fiber;
char* stacks;
char start_order, end_order;
char error[400];  // empty while all is well
const Kernel* kernel;
void** arguments;

unsigned index_of(const Lane& lane) { return &lane - lanes; }
Lane* warp_of(const Lane& lane) { return lanes + (index_of(lane) & ~31u); }

void release(char& place) {
#ifdef CUEMU_THREAD_SANITIZER
    __tsan_release(&place);
#else
    (void)place;
#endif
}
void acquire(char& place) {
#ifdef CUEMU_THREAD_SANITIZER
    __tsan_acquire(&place);
#else
    (void)place;
#endif
}
void switch_to(Context& from, Context& to, void* sanitizer_fiber) {
#ifdef CUEMU_THREAD_SANITIZER
    __tsan_switch_to_fiber(sanitizer_fiber, 1);  // 1: the switch itself orders nothing
#else
    (void)sanitizer_fiber;
#endif
    switch_stack(from, to);
}
void give_way() { switch_to(me->context, scheduler, scheduler_fiber); }
void wait() {
    me->waiting = true;
    give_way();
}

[[noreturn]] void fail(Site site, const char* format, ...) {
    const Indices& at = me->indices;
    int n = snprintf(error, sizeof error, "%s:%d: thread (%u, %u, %u) of block (%u, %u, %u): ",
                     site.file, site.line, at.thread.x, at.thread.y, at.thread.z, at.block.x,
                     at.block.y, at.block.z);
    va_list values;
    va_start(values, format);
    vsnprintf(error + n, sizeof error - n, format, values);
    va_end(values);
    release(end_order);
    give_way();  // for good: the block is given up, its fibers are never resumed
    abort();
}

void lane_entry() {
    acquire(start_order);
    kernel->body(arguments);
    if (block.num_at_barrier)
        fail(block.barrier_site, "exits while others of its block wait in __syncthreads");
    me->exited = true;
    block.num_live--;
    release(end_order);
    give_way();
    abort();
}

void start_lane(unsigned i, const Launch& launch, uint3 block_index) {
    Lane& lane = lanes[i];
    const unsigned* size = launch.block;
    lane.indices.thread = {i % size[0], i / size[0] % size[1], i / (size[0] * size[1])};
    lane.indices.block = block_index;
    lane.indices.block_dim = {size[0], size[1], size[2]};
    lane.indices.grid_dim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    lane.exited = lane.waiting = lane.parity = false;
    lane.mask = 0;
#ifdef CUEMU_THREAD_SANITIZER
    if (!lane.sanitizer_fiber) lane.sanitizer_fiber = __tsan_create_fiber(0);
#endif
#ifdef CUEMU_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(stacks + i * stack_bytes, stack_bytes);  // of a block given up
#endif
    prepare_stack(lane.context, stacks + i * stack_bytes);
}

// ---- orders --------------------------------------------------------------------------------------------

struct Random {
    unsigned long long state;
    unsigned below(unsigned n) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (state >> 33) % n;
    }
};

// Seed 0: ascending; 1: descending; others: shuffled anew at every call.
void arrange(unsigned* order, unsigned n, unsigned long long seed, Random& random) {
    if (seed < 2) return;
    for (unsigned i = n; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
}
void fill_order(unsigned* order, unsigned n, unsigned long long seed) {
    for (unsigned i = 0; i < n; i++) order[i] = seed == 1 ? n - 1 - i : i;
}

void report_deadlock() {
    for (unsigned i = 0; i < block.num_lanes; i++)
        if (lanes[i].waiting) {
            const Indices& at = lanes[i].indices;
            snprintf(error, sizeof error,
                     "%s:%d: deadlock in block (%u, %u, %u): thread (%u, %u, %u) waits for others"
                     " that never come", lanes[i].site.file, lanes[i].site.line, at.block.x,
                     at.block.y, at.block.z, at.thread.x, at.thread.y, at.thread.z);
            return;
        }
}

void run_block(const Launch& launch, uint3 index, Random& random) {
    static unsigned order[max_lanes];
    const unsigned n = launch.block[0] * launch.block[1] * launch.block[2];
    block = {};
    block.num_lanes = block.num_live = n;
    for (unsigned i = 0; i < n; i++) start_lane(i, launch, index);
    fill_order(order, n, launch.seed);
    release(start_order);
    for (bool moved = true; block.num_live && !error[0];) {
        if (!moved) return report_deadlock();
        moved = false;
        arrange(order, n, launch.seed, random);
        for (unsigned i = 0; i < n && !error[0]; i++) {
            Lane& lane = lanes[order[i]];
            if (lane.exited || lane.waiting) continue;
            moved = true;
            me = &lane;
            current = &lane.indices;
            switch_to(scheduler, lane.context, lane.sanitizer_fiber);
        }
    }
    acquire(end_order);
}

// ---- limits that a GPU has too --------------------------------------------------------------------------

bool check_limits(const Launch& launch) {
    const unsigned *grid = launch.grid, *size = launch.block;
    const unsigned long long threads = 1ull * size[0] * size[1] * size[2];
    const size_t fixed = kernel->shared_end - kernel->shared_begin;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
        snprintf(error, sizeof error, "grid (%u, %u, %u): CUDA takes 1..2147483647, 1..65535, 1..65535",
                 grid[0], grid[1], grid[2]);
    else if (!threads || threads > max_lanes || size[2] > 64)
        snprintf(error, sizeof error, "block (%u, %u, %u): CUDA takes 1..1024 threads, z at most 64",
                 size[0], size[1], size[2]);
    else if (threads > (unsigned)kernel->max_threads)
        snprintf(error, sizeof error, "block of %llu threads, but __launch_bounds__ says %d", threads,
                 kernel->max_threads);
    else if (fixed + launch.dynamic_bytes > max_shared_bytes)
        snprintf(error, sizeof error, "%zu bytes of static and %llu of dynamic shared memory: %zu at most",
                 fixed, launch.dynamic_bytes, max_shared_bytes);
    return !error[0];
}

void run_grid(const Launch& launch) {
    const unsigned nx = launch.grid[0], ny = launch.grid[1];
    const unsigned num_blocks = nx * ny * launch.grid[2];
    unsigned* order = static_cast<unsigned*>(malloc(num_blocks * sizeof(unsigned)));
    Random random{launch.seed};
    fill_order(order, num_blocks, launch.seed);
    arrange(order, num_blocks, launch.seed, random);
    for (unsigned i = 0; i < num_blocks && !error[0]; i++) {
        const unsigned b = order[i];
        if (kernel->shared_begin)
            memset(kernel->shared_begin, 0xFF, kernel->shared_end - kernel->shared_begin);
        dynamic_shared = malloc(launch.dynamic_bytes);  // exact, so that its end is guarded
        memset(dynamic_shared, 0xFF, launch.dynamic_bytes);
        run_block(launch, {b % nx, b / nx % ny, b / (nx * ny)}, random);
        free(dynamic_shared);
    }
    free(order);
}

}  // namespace

// ---- what kernels call ---------------------------------------------------------------------------------------

unsigned lane() { return index_of(*me) & 31; }

int sync_block(Vote vote, bool predicate, Site site) {
    const Site& other = block.barrier_site;
    if (block.num_at_barrier && (other.line != site.line || strcmp(other.file, site.file)))
        fail(site, "divergent __syncthreads: others of its block wait at %s:%d", other.file, other.line);
    if (block.num_live != block.num_lanes)
        fail(site, "__syncthreads after %u threads of its block have exited",
             block.num_lanes - block.num_live);
    me->site = block.barrier_site = site;
    block.votes += predicate;
    char& order = block.order[block.parity];
    release(order);
    if (++block.num_at_barrier < block.num_lanes) {
        wait();
    } else {
        const int n = block.votes;
        block.result = vote == Vote::any ? n > 0 : vote == Vote::all ? n == (int)block.num_lanes : n;
        block.votes = block.num_at_barrier = 0;
        block.parity = !block.parity;
        for (unsigned i = 0; i < block.num_lanes; i++) lanes[i].waiting = false;
    }
    acquire(order);
    return block.result;  // the next barrier cannot be complete before all have read it
}

const unsigned long long* exchange(unsigned mask, unsigned long long value, bool ordered, Site site) {
    Lane* const warp = warp_of(*me);
    const unsigned begin = warp - lanes;
    const unsigned num = block.num_lanes - begin < 32 ? block.num_lanes - begin : 32;
    const unsigned existing = num < 32 ? (1u << num) - 1 : ~0u;
    if (mask != ~0u && mask & ~existing) fail(site, "mask %#x names lanes beyond the block", mask);
    mask &= existing;  // a full mask may stand for all lanes that there are
    if (!(mask >> lane() & 1)) fail(site, "mask %#x lacks the calling lane %u", mask, lane());
    me->brought = value;
    me->mask = mask;
    me->site = site;
    char& order = me->order[me->parity];
    if (ordered) release(order);
    bool complete = true;
    for (unsigned l = 0; l < num; l++) {
        if (!(mask >> l & 1)) continue;
        const Lane& other = warp[l];
        if (other.exited) fail(site, "mask %#x names lane %u, which has exited", mask, l);
        if (other.mask && (other.mask != mask || other.site.line != site.line))
            fail(site, "mask %#x names lane %u, which waits at %s:%d with mask %#x", mask, l,
                 other.site.file, other.site.line, other.mask);
        complete &= other.mask == mask;
    }
    if (!complete) {
        wait();
    } else {
        unsigned long long all[32];
        for (unsigned l = 0; l < 32; l++) all[l] = mask >> l & 1 ? warp[l].brought : ~0ull;
        for (unsigned l = 0; l < num; l++) {
            if (!(mask >> l & 1)) continue;
            memcpy(warp[l].received, all, sizeof all);
            warp[l].mask = 0;
            warp[l].waiting = false;
        }
    }
    const bool parity = me->parity;
    if (ordered)
        for (unsigned l = 0; l < num; l++)
            if (mask >> l & 1) acquire(warp[l].order[parity]);
    me->parity = !parity;
    return me->received;
}

void require_lane(unsigned mask, unsigned source, Site site) {
    if (source > 31 || !(mask >> source & 1) || (warp_of(*me) - lanes) + source >= block.num_lanes)
        fail(site, "shuffle reads lane %u, which is not in mask %#x", source, mask);
}

const char* run(const Kernel& to_run, const Launch& launch, void** args) {
    error[0] = 0;
    kernel = &to_run;
    arguments = args;
    if (!stacks)
        stacks = static_cast<char*>(mmap(nullptr, max_lanes * stack_bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
#ifdef CUEMU_THREAD_SANITIZER
    scheduler_fiber = __tsan_get_current_fiber();
#endif
    if (check_limits(launch)) run_grid(launch);
    return error[0] ? error : nullptr;
}

}  // namespace cuemu
