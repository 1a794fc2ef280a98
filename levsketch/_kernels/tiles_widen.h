/* Numbers as rows store them, to float64, exactly: subnormal numbers, infinities and NaN, too.
 * Vectors are spelt out where compilers were seen not to find them. Part of tiles.c. */
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

typedef float floats __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void widen_f64(const double *from, ptrdiff_t count, double *to)
{
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = from[i];
}

INLINE void widen_f32(const float *from, ptrdiff_t count, double *to)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES)
        *(vec *)(to + i) = __builtin_convertvector(*(const floats *)(from + i), vec);
    for (; i < count; i++)
        to[i] = (double)from[i];
}

/* bfloat16 is the upper half of a float. */
INLINE void widen_bf16(const uint16_t *from, ptrdiff_t count, double *to)
{
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = (double)float_of((uint32_t)from[i] << 16);
}

#if defined(__F16C__)

INLINE void widen_f16(const uint16_t *from, ptrdiff_t count, double *to)
{
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + i)));
#if defined(__AVX512F__)
        _mm512_storeu_pd(to + i, _mm512_cvtps_pd(x));
#else
        _mm256_storeu_pd(to + i, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        _mm256_storeu_pd(to + i + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
#endif
    }
    for (; i < count; i++)
        to[i] = (double)_cvtsh_ss(from[i]);
}

#else

typedef uint16_t half4 __attribute__((vector_size(8)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef float float4 __attribute__((vector_size(16)));
typedef double double4 __attribute__((vector_size(32)));

/* Exponents begin 112 lower than in a float, and those of infinity and NaN end 224 lower. A
 * subnormal number m 2^-24 is 2^-14 (1 + m 2^-10) - 2^-14: no step of that is subnormal or rounds,
 * so it holds where floating-point units flush subnormal numbers to zero. */
INLINE void widen_four(const uint16_t *from, double *to)
{
    const int32_t step = 1 << 23, least = 113 * step; /* 2^-14 */
    half4 stored;
    memcpy(&stored, from, sizeof stored);
    int4 h = __builtin_convertvector(stored, int4);
    int4 size = (h & 0x7fff) << 13, subnormal = size < step;
    int4 bits = size + 112 * step + (subnormal & step) + ((size >= 31 * step) & (112 * step));
    float4 x = (float4)bits - (float4)(subnormal & least);
    double4 wide = __builtin_convertvector((float4)((int4)x | (h & 0x8000) << 16), double4);
    memcpy(to, &wide, sizeof wide);
}

INLINE void widen_f16(const uint16_t *from, ptrdiff_t count, double *to)
{
    ptrdiff_t i = 0;
    for (; i + 4 <= count; i += 4)
        widen_four(from + i, to + i);
    if (i == count)
        return;
    uint16_t rest[4] = {0};
    double wide[4];
    for (ptrdiff_t j = 0; j < count - i; j++)
        rest[j] = from[i + j];
    widen_four(rest, wide);
    for (ptrdiff_t j = 0; j < count - i; j++)
        to[i + j] = wide[j];
}

#endif
