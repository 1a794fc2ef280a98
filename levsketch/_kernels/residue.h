/* Arithmetic modulo the prime P = 2^61 - 31, and the image of a double in it.
 *
 * A finite double is m 2^e with integers m and e, so reduction mod P is a ring
 * homomorphism on sums and products of doubles: a minor that is nonzero mod P
 * is nonzero, and one that is nonzero is zero mod P only if P divides it. The
 * Mersenne prime 2^61 - 1 is not used: there 2^61 = 1, and rows that differ by
 * a power of two are common in floating-point data.
 */
#ifndef LEVSKETCH_RESIDUE_H
#define LEVSKETCH_RESIDUE_H

#include <stdint.h>
#include <string.h>

#define LEV_P ((uint64_t)2305843009213693921u) /* 2^61 - 31 */

static inline uint64_t residue_mul(uint64_t a, uint64_t b)
{
    /* hi 2^61 + lo = 31 hi + lo; 31 hi < 2^66, hence the second fold */
    unsigned __int128 t = (unsigned __int128)a * b;
    uint64_t mask = ((uint64_t)1 << 61) - 1;
    unsigned __int128 s = (unsigned __int128)31 * (uint64_t)(t >> 61) + ((uint64_t)t & mask);
    uint64_t u = 31 * (uint64_t)(s >> 61) + ((uint64_t)s & mask);
    return u >= LEV_P ? u - LEV_P : u;
}

static inline uint64_t residue_add(uint64_t a, uint64_t b)
{
    uint64_t s = a + b;
    return s >= LEV_P ? s - LEV_P : s;
}

static inline uint64_t residue_neg(uint64_t a)
{
    return a ? LEV_P - a : 0;
}

static inline uint64_t residue_pow(uint64_t a, uint64_t e)
{
    uint64_t r = 1;
    for (; e; e >>= 1, a = residue_mul(a, a))
        if (e & 1)
            r = residue_mul(r, a);
    return r;
}

static inline uint64_t residue_inv(uint64_t a)
{
    return residue_pow(a, LEV_P - 2);
}

/* powers[k] = 2^(k - LEV_BIAS) */
#define LEV_BIAS 1080
#define LEV_POWERS 2100
static inline void residue_powers(uint64_t *powers)
{
    uint64_t half = (LEV_P + 1) / 2;
    powers[0] = residue_pow(half, LEV_BIAS);
    for (int k = 1; k < LEV_POWERS; k++)
        powers[k] = residue_add(powers[k - 1], powers[k - 1]);
}

/* The image of a finite double. */
static inline uint64_t residue_of(double x, const uint64_t *powers)
{
    uint64_t bits, m;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff);
    m = bits & (((uint64_t)1 << 52) - 1);
    if (exponent)
        m |= (uint64_t)1 << 52;
    else
        exponent = 1; /* denormal, or zero */
    m = residue_mul(m, powers[exponent - 1075 + LEV_BIAS]);
    return bits >> 63 ? residue_neg(m) : m;
}

/* SplitMix64: the k-th number of a fixed pseudo-random sequence, below P. */
static inline uint64_t residue_random(uint64_t k)
{
    uint64_t x = (k + 1) * (uint64_t)0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * (uint64_t)0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * (uint64_t)0x94D049BB133111EBu;
    x ^= x >> 31;
    return x % LEV_P;
}

#endif
