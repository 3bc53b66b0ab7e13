"""A stand-in for libcuda.so.1: the functions of the driver that cuda-python calls. It runs nothing.

With DRIVER_LOG it writes every call to that file; of a kernel's parameters it writes the bytes by the sizes in SIZES.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.kernel_cases import shared_library

DRIVER = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
static FILE* log_file() {
    static FILE* file = getenv("DRIVER_LOG") ? fopen(getenv("DRIVER_LOG"), "w") : nullptr;
    return file;
}
#define SAY(...) (log_file() ? (fprintf(log_file(), __VA_ARGS__), fflush(log_file())) : 0)
extern "C" {
int cuGetProcAddress_v2(const char* name, void** found, int, unsigned long long, int*) {
    return (*found = dlsym(RTLD_DEFAULT, name)) ? 0 : 500;
}
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal + 40; return 0; }
int cuGetErrorName(int, const char** text) { *text = "ERROR"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "error"; return 0; }
int cuLibraryUnload(void*) { return 0; }
int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    SAY("load %.11s\n", static_cast<const char*>(code) + 5);
    *library = reinterpret_cast<void*>(0x11);
    return 0;
}
int cuLibraryGetKernel(void** kernel, void*, const char* name) {
    SAY("kernel %s\n", name);
    *kernel = reinterpret_cast<void*>(0x22);
    return 0;
}
int cuKernelSetAttribute(int attribute, int value, void* kernel, int device) {
    SAY("attribute %d %d %p %d\n", attribute, value, kernel, device);
    return getenv("REFUSE") ? atoi(getenv("REFUSE")) : 0;
}
int cuLaunchKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void* stream, void** parameters, void**) {
    if (!log_file()) return 0;
    SAY("launch %u %u %u %u %u %u %u %p %p ", x, y, z, block_x, block_y, block_z, shared, stream, kernel);
    for (const char* size = getenv("SIZES"); *size; ++size, ++parameters)
        for (int i = 0; i < *size - '0'; ++i) SAY("%02x", static_cast<unsigned char*>(*parameters)[i]);
    SAY("\n");
    return 0;
}
}
"""


def driver_double(folder: Path) -> Path:
    """Compiles the library into `folder`; returns it."""
    return shared_library(folder, "libcuda.so.1", DRIVER, "-ldl")
