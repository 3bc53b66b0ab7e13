// One value of a decoder's image -> one byte: the arithmetic of reference.py, for a GPU and, in its test, for a CPU.
//
// Float32, each operation rounded on its own: a multiply-add fused by a compiler would round once where torch rounds
// twice. A host compiler needs -ffp-contract=off for the same.
#pragma once

#ifdef __CUDACC__
#define DIVE_BOTH __device__ __forceinline__
#else
#include <cmath>
#include <cstring>
#define DIVE_BOTH static inline
#endif

// What differs between the two: how a rounded operation is asked for.
#ifdef __CUDACC__
DIVE_BOTH float multiplied(float a, float b) { return __fmul_rn(a, b); }
DIVE_BOTH float added(float a, float b) { return __fadd_rn(a, b); }
DIVE_BOTH int rounded(float a) { return __float2int_rn(a); }  // half to even
#else
DIVE_BOTH float multiplied(float a, float b) { return a * b; }
DIVE_BOTH float added(float a, float b) { return a + b; }
DIVE_BOTH int rounded(float a) { return static_cast<int>(std::nearbyint(a)); }  // half to even, as the mode is by default
#endif

// Storage of the two half types, exact as float32.
struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

#ifdef __CUDACC__
DIVE_BOTH float from_bits(unsigned int bits) { return __uint_as_float(bits); }
DIVE_BOTH float as_float(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
#else
DIVE_BOTH float from_bits(unsigned int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
DIVE_BOTH float as_float(Half value) {
    const unsigned int sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    const float magnitude = rest < 0x7c00u ? from_bits(rest << 13) * 0x1p112f        // the exponents' biases differ by 112
                                           : from_bits((rest << 13) | 0x7f800000u);  // infinity, NaN
    return sign ? -magnitude : magnitude;
}
#endif
DIVE_BOTH float as_float(BFloat16 value) { return from_bits(static_cast<unsigned int>(value.bits) << 16); }
DIVE_BOTH float as_float(float value) { return value; }

DIVE_BOTH bool is_finite(float value) { return value - value == 0.0f; }  // infinity and NaN give NaN

// -1..1 -> 0..255; what lies outside is clamped, NaN becomes 0.
DIVE_BOTH unsigned int to_byte(float value) {
    const float unit = added(multiplied(value, 0.5f), 0.5f);
    const float inside = unit > 0.0f ? (unit < 1.0f ? unit : 1.0f) : 0.0f;
    return static_cast<unsigned int>(rounded(multiplied(inside, 255.0f)));
}
