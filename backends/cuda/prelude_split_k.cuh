// Wrappers for two CTAs that sum a part of K each: see prelude.cuh.

//@ mbarrier_grant: types peer_address
// A release to the cluster, which costs a fence: what this CTA has read comes before what the peer then sends.
DEVICE void mbarrier_grant(u32 bar, u32 rank) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(peer_address(bar, rank)) : "memory");
}

//@ mbarrier_wait_peer: types
// Acquires at the scope of the cluster: what the peer wrote is seen after.
DEVICE void mbarrier_wait_peer(u32 bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(bar), "r"(parity) : "memory");
}

//@ load_shared_quad: types
DEVICE void load_shared_quad(u32 address, float (&v)[4]) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "r"(address) : "memory");
}

//@ store_peer_quad: types
// Arrives some time later, and then counts 16 bytes on the barrier. Both addresses are in the peer.
DEVICE void store_peer_quad(u32 address, float a, float b, float c, float d, u32 bar) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
                 "r"(address), "f"(a), "f"(b), "f"(c), "f"(d), "r"(bar) : "memory");
}

//@ send_sums: peer_address store_peer_quad
// Sends COUNT registers from FIRST on to CTA `peer`. Quad q of thread t of a warpgroup lies at (128 q + t) * 16.
template <int FIRST, int COUNT, int REGISTERS> DEVICE void send_sums(const float (&sums)[REGISTERS], u32 slot, u32 bar, u32 peer) {
    const u32 to = peer_address(slot, peer) + threadIdx.x % 128 * 16, full = peer_address(bar, peer);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const int r = FIRST + i;
        store_peer_quad(to + i * 512, sums[r], sums[r + 1], sums[r + 2], sums[r + 3], full);
    }
}

//@ add_sums: load_shared_quad
template <int FIRST, int COUNT, int REGISTERS> DEVICE void add_sums(float (&sums)[REGISTERS], u32 slot) {
    const u32 from = slot + threadIdx.x % 128 * 16;
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        float v[4];
        load_shared_quad(from + i * 512, v);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[FIRST + i + j] = __fadd_rn(sums[FIRST + i + j], v[j]);
    }
}
