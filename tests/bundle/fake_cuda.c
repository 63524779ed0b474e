/* The calls of libcuda that a bundle's header makes, answered as an H200 would and written down as JSON lines. */
#include <cuda.h>
#include <stdio.h>
#include <string.h>

static char text[1 << 16];
static size_t used;
static int param_bytes[64], num_params, clusters = 60, capability = 9, shared = 232448, maps;

__attribute__((visibility("default"))) const char *fake_log(void) { return text; }

__attribute__((visibility("default"))) void fake_reset(const int *bytes, int count, int resident, int major, int optin) {
    used = 0;
    text[0] = 0;
    maps = 0;
    num_params = count;
    clusters = resident;
    capability = major;
    shared = optin;
    for (int i = 0; i < count; ++i) param_bytes[i] = bytes[i];
}

#define SAY(...) (used += (size_t)snprintf(text + used, sizeof text - used, __VA_ARGS__))

CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute kind, CUdevice device) {
    (void)device;
    *value = kind == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT               ? 132
             : kind == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR         ? capability
             : kind == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? shared
                                                                             : 0;
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    SAY("[\"load\", \"%.5s\"]\n", (const char *)image);
    *module = (CUmodule)0x11;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { SAY("[\"unload\", %d]\n", (int)(size_t)module); return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    (void)module;
    SAY("[\"function\", \"%s\"]\n", name);
    *function = (CUfunction)0x22;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute kind, int value) {
    (void)function;
    SAY("[\"attribute\", %d, %d]\n", (int)kind, value);
    return CUDA_SUCCESS;
}

CUresult cuFuncLoad(CUfunction function) { (void)function; SAY("[\"ready\"]\n"); return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
    (void)function;
    SAY("[\"clusters\", %u, %u, %u]\n", config->gridDimX, config->blockDimX, config->sharedMemBytes);
    *count = clusters;
    return CUDA_SUCCESS;
}

static void say_numbers(const char *end, cuuint32_t count, const cuuint64_t *wide, const cuuint32_t *narrow) {
    SAY("[");
    for (cuuint32_t i = 0; i < count; ++i)
        SAY("%s%llu", i ? ", " : "", wide ? (unsigned long long)wide[i] : (unsigned long long)narrow[i]);
    SAY("]%s", end);
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *extents, const cuuint64_t *pitches, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    memset(map, ++maps, sizeof *map);
    SAY("[\"map\", %d, %u, %llu, ", (int)type, rank, (unsigned long long)address);
    say_numbers(", ", rank, extents, NULL);
    say_numbers(", ", rank - 1, pitches, NULL);
    say_numbers(", ", rank, NULL, box);
    say_numbers(", ", rank, NULL, steps);
    SAY("%d, %d, %d, %d]\n", (int)interleave, (int)swizzle, (int)promotion, (int)fill);
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    SAY("[\"launch\", %d, [%u, %u, %u], [%u, %u, %u], %u, %llu, %d, [", (int)(size_t)function, config->gridDimX,
        config->gridDimY, config->gridDimZ, config->blockDimX, config->blockDimY, config->blockDimZ,
        config->sharedMemBytes, (unsigned long long)config->hStream, extra != NULL);
    for (unsigned i = 0; i < config->numAttrs; ++i)
        SAY("%s[%d, %d]", i ? ", " : "", (int)config->attrs[i].id,
            config->attrs[i].value.programmaticStreamSerializationAllowed);
    SAY("], [");
    for (int i = 0; i < num_params; ++i) {
        SAY("%s\"", i ? ", " : "");
        for (int b = 0; b < param_bytes[i]; ++b) SAY("%02x", ((unsigned char *)params[i])[b]);
        SAY("\"");
    }
    SAY("]]\n");
    return CUDA_SUCCESS;
}

/* What the example calls before and after: there is no GPU to go on with. */
CUresult cuInit(unsigned flags) { (void)flags; return CUDA_ERROR_NO_DEVICE; }

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_NOT_SUPPORTED";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int number) { *device = number; return CUDA_ERROR_NO_DEVICE; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)context, (void)device;
    return CUDA_ERROR_NO_DEVICE;
}

CUresult cuCtxSetCurrent(CUcontext context) { (void)context; return CUDA_ERROR_NO_DEVICE; }

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) { (void)address, (void)bytes; return CUDA_ERROR_NO_DEVICE; }

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    (void)to, (void)from, (void)bytes;
    return CUDA_ERROR_NO_DEVICE;
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    (void)to, (void)from, (void)bytes;
    return CUDA_ERROR_NO_DEVICE;
}
