// Runs a bundle with the CUDA driver API and nothing else, and checks every element of the result.
//
//     gemmir compile examples/03_o_proj_bf16.mlir --emit bundle -o o_proj/
//     c++ -std=c++17 -I o_proj -I $CUDA_HOME/include examples/bundle/main.cpp -o run_bundle -lcuda
//     ./run_bundle o_proj/o_proj.cubin
//
// Inputs are small integers, so every sum is exact and is compared with tolerance zero.
#include "o_proj.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

constexpr int64_t M = 100, N = 7168, K = 16384;

void need(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS) return;
    const char *name = nullptr;
    cuGetErrorName(result, &name);
    std::fprintf(stderr, "%s: %s\n", call, name ? name : "unknown error");
    std::exit(3);
}

void need(gemmir_result result) {
    if (result.status == GEMMIR_OK) return;
    std::fprintf(stderr, "gemmir: %s (tensor %d)\n", result.message, result.argument);
    need(result.cuda, "driver");
    std::exit(3);
}

// BF16 is the upper half of a float; small integers lose nothing.
uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
}

float from_bf16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Of every 64 products of a row at most one is not zero: results are the integers from -256 to 256, which BF16 holds.
float x_at(int64_t m, int64_t k) { return k % 64 == m % 64 ? 1.0f : 0.0f; }
float w_at(int64_t n, int64_t k) { return k / 64 >= n % 257 ? 0.0f : k % 2 == 0 ? 1.0f : -1.0f; }

CUdeviceptr on_device(const std::vector<uint16_t> &values) {
    CUdeviceptr address;
    need(cuMemAlloc(&address, values.size() * 2), "cuMemAlloc");
    need(cuMemcpyHtoD(address, values.data(), values.size() * 2), "cuMemcpyHtoD");
    return address;
}

int64_t wrong_elements(const std::vector<uint16_t> &y) {
    int64_t wrong = 0;
    for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n) {
            float sum = 0.0f;
            for (int64_t k = m % 64; k < K; k += 64) sum += w_at(n, k);
            wrong += from_bf16(y[static_cast<size_t>(m * N + n)]) != sum;
        }
    return wrong;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s o_proj.cubin\n", argv[0]);
        return 2;
    }
    std::ifstream file(argv[1], std::ios::binary);
    const std::vector<char> cubin{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (cubin.empty()) {
        std::fprintf(stderr, "cannot read %s\n", argv[1]);
        return 2;
    }
    CUdevice device;
    CUcontext context;
    need(cuInit(0), "cuInit");
    need(cuDeviceGet(&device, 0), "cuDeviceGet");
    need(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    need(cuCtxSetCurrent(context), "cuCtxSetCurrent");

    gemmir_kernel kernel;
    need(gemmir_o_proj_load(&kernel, cubin.data()));

    std::vector<uint16_t> x(M * K), w(N * K), y(M * N, 0x7fc0);  // y starts as NaN
    for (int64_t m = 0; m < M; ++m)
        for (int64_t k = 0; k < K; ++k) x[static_cast<size_t>(m * K + k)] = to_bf16(x_at(m, k));
    for (int64_t n = 0; n < N; ++n)
        for (int64_t k = 0; k < K; ++k) w[static_cast<size_t>(n * K + k)] = to_bf16(w_at(n, k));

    const gemmir_tensor tx = {on_device(x), {M, K, 0}, {K, 1, 0}};
    const gemmir_tensor tw = {on_device(w), {K, N, 0}, {1, K, 0}};  // N x K in memory, passed as its transpose
    const gemmir_tensor ty = {on_device(y), {M, N, 0}, {N, 1, 0}};
    need(gemmir_o_proj_launch(&kernel, &tx, &tw, &ty, 0, nullptr));
    need(cuMemcpyDtoH(y.data(), ty.address, y.size() * 2), "cuMemcpyDtoH");

    const int64_t wrong = wrong_elements(y);
    std::printf("%lld of %lld elements are wrong\n", static_cast<long long>(wrong), static_cast<long long>(M * N));
    need(gemmir_unload(&kernel));
    return wrong == 0 ? 0 : 1;
}
