// Images [B, 3, H, W] of a decoder -> bytes [B, H, W, 3], and how many values of each image are not finite.
//
// A thread makes 4 pixels, 12 bytes, of one image. Where 4 pixels are aligned they are read and written as whole words:
// as 3 loads of 4 values, one a channel (planar), or as 12 neighbouring values (interleaved). blockIdx.x is the image.
#include "epilogue.h"

namespace {

constexpr int PIXELS = 4, CHANNELS = 3, VALUES = PIXELS * CHANNELS;

template <typename T> struct alignas(4 * sizeof(T)) Quad { T values[4]; };

template <typename T> __device__ __forceinline__ bool aligned(const void* address) {
    return reinterpret_cast<unsigned long long>(address) % alignof(T) == 0;
}

// The 12 values of 4 pixels in the order of the output: red, green, blue of the first, then of the next.
template <typename T, bool PLANAR>
__device__ __forceinline__ void load(const T* image, long long first, long long pixels, float (&out)[VALUES]) {
    constexpr int QUADS = VALUES / 4;
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) {
        const T* from = PLANAR ? image + quad * pixels + first : image + first * CHANNELS + quad * 4;
        const Quad<T> four = *reinterpret_cast<const Quad<T>*>(from);
#pragma unroll
        for (int i = 0; i < 4; ++i) out[PLANAR ? i * CHANNELS + quad : quad * 4 + i] = as_float(four.values[i]);
    }
}

template <typename T, bool PLANAR>
__device__ __forceinline__ void epilogue(const T* images, unsigned char* bytes, int* broken, int pixels) {
    const long long first = (static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x) * PIXELS;
    const long long start = static_cast<long long>(blockIdx.x) * pixels * CHANNELS;
    const T* image = images + start;
    unsigned char* out = bytes + start;
    int odd = 0;
    if (first < pixels) {
        const bool whole = pixels % PIXELS == 0 && aligned<Quad<T>>(images) && aligned<unsigned int>(bytes);
        if (whole) {
            float values[VALUES];
            load<T, PLANAR>(image, first, pixels, values);
            unsigned int words[CHANNELS] = {0, 0, 0};
#pragma unroll
            for (int i = 0; i < VALUES; ++i) {
                words[i / 4] |= to_byte(values[i]) << (i % 4 * 8);  // little-endian, as every NVIDIA GPU
                odd += !is_finite(values[i]);
            }
            unsigned int* to = reinterpret_cast<unsigned int*>(out + first * CHANNELS);
#pragma unroll
            for (int i = 0; i < CHANNELS; ++i) to[i] = words[i];
        } else {
            for (long long pixel = first; pixel < pixels && pixel < first + PIXELS; ++pixel) {
                for (int channel = 0; channel < CHANNELS; ++channel) {
                    const float value = as_float(PLANAR ? image[channel * static_cast<long long>(pixels) + pixel]
                                                        : image[pixel * CHANNELS + channel]);
                    out[pixel * CHANNELS + channel] = static_cast<unsigned char>(to_byte(value));
                    odd += !is_finite(value);
                }
            }
        }
    }
    odd = __reduce_add_sync(0xffffffffu, odd);  // the warp's sum; whole numbers, so the order of adding changes nothing
    if (odd && threadIdx.x % 32 == 0) atomicAdd(broken + blockIdx.x, odd);
}

}  // namespace

#define DIVE_KERNEL(NAME, T, PLANAR)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                             \
        NAME(const T* images, unsigned char* bytes, int* broken, int pixels) {                                    \
        epilogue<T, PLANAR>(images, bytes, broken, pixels);                                                       \
    }

DIVE_KERNEL(image_epilogue_planar_fp32, float, true)
DIVE_KERNEL(image_epilogue_planar_fp16, Half, true)
DIVE_KERNEL(image_epilogue_planar_bf16, BFloat16, true)
DIVE_KERNEL(image_epilogue_interleaved_fp32, float, false)
DIVE_KERNEL(image_epilogue_interleaved_fp16, Half, false)
DIVE_KERNEL(image_epilogue_interleaved_bf16, BFloat16, false)
