// Waits that end a kernel that hangs, and first say where it does: see prelude.cuh. A kernel that is watched has them in
// the place of the waits whose names they bear; gemmir/backends/cuda/watchdog.py reads what they say.

//@ watchdog: types
// The host sets where the record lies; `reports` have been made. Times are in units of 2^20 nanoseconds.
struct Watchdog { u32* record; u32 reports; };
__device__ Watchdog watchdog;
constexpr u32 WATCHDOG_REPORTS = 256, WATCHDOG_LIMIT = u32((WATCHDOG_MS * 1000000ull >> 20) + 1), WATCHDOG_GRACE = WATCHDOG_LIMIT / 4 + 1;

//@ watchdog_now: types
DEVICE u32 watchdog_now() {
    u64 nanoseconds;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
    return u32(nanoseconds >> 20);
}

//@ watchdog_bark: watchdog watchdog_now smem_address
// A lane of each warp reports: 1, CTA, warp, where in shared memory the barrier lies, the parity, how long it waited. Others
// who wait have time to do the same before all ends. The loop around `trap` is for ptxas: a way out of the kernel from
// between two WGMMAs costs registers that math warps have not got.
DEVICE void watchdog_bark(u32 bar, u32 parity, u32 waited) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 began = watchdog_now();
    if (__ffs(__activemask()) - 1 == threadIdx.x % 32 && watchdog.record != nullptr) {
        const u32 report = atomicAdd(&watchdog.reports, 1);
        if (report < WATCHDOG_REPORTS) {
            volatile u32* out = watchdog.record + report * 8;
            out[1] = blockIdx.x;
            out[2] = threadIdx.x / 32;
            out[3] = bar - smem_address(shared);
            out[4] = parity;
            out[5] = waited;
            __threadfence_system();
            out[0] = 1;
            __threadfence_system();
        }
    }
    while (watchdog_now() - began <= WATCHDOG_GRACE) __nanosleep(1000);
    for (;;) asm volatile("trap;");
}

//@ watched_mbarrier_wait: watchdog_bark
DEVICE bool mbarrier_try(u32 bar, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}" : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    return done;
}

DEVICE void mbarrier_wait(u32 bar, u32 parity) {
    const u32 began = watchdog_now();
    while (!mbarrier_try(bar, parity))
        if (const u32 waited = watchdog_now() - began; waited > WATCHDOG_LIMIT) watchdog_bark(bar, parity, waited);
}

//@ watched_mbarrier_wait_peer: watchdog_bark
DEVICE bool mbarrier_try_peer(u32 bar, u32 parity) {
    u32 done;
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}" : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    return done;
}

DEVICE void mbarrier_wait_peer(u32 bar, u32 parity) {
    const u32 began = watchdog_now();
    while (!mbarrier_try_peer(bar, parity))
        if (const u32 waited = watchdog_now() - began; waited > WATCHDOG_LIMIT) watchdog_bark(bar, parity, waited);
}
