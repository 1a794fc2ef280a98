// Rows of any storage type: how they are read, widened and multiplied.

#if STORAGE == 0
#include <cuda_bf16.h>
#elif STORAGE == 1
#include <cuda_fp16.h>
#endif

#define MOST_ROWS 0x7fffffff  // of a CTA

#if STORAGE < 2
typedef unsigned short stored_t;
typedef float out_t;
#elif STORAGE == 2
typedef float stored_t;
typedef float out_t;
#else
typedef double stored_t;
typedef double out_t;
#endif

__device__ __forceinline__ double widen(stored_t x) {
#if STORAGE == 0
  return (double)__uint_as_float((unsigned)x << 16);
#elif STORAGE == 1
  return (double)__half2float(__ushort_as_half(x));
#else
  return (double)x;
#endif
}

// Four neighbouring entries of a row, zero beyond `left`.
struct Quad {
  stored_t v[4];
};

__device__ __forceinline__ Quad load_quad(const stored_t *p, index_t left, int aligned) {
  Quad q;
#pragma unroll
  for (int i = 0; i < 4; ++i) q.v[i] = 0;
  if (aligned) {
    if (left > 0) {
#if STORAGE < 2
      *(uint2 *)q.v = __ldg((const uint2 *)p);
#elif STORAGE == 2
      *(float4 *)q.v = __ldg((const float4 *)p);
#else
      *(double2 *)q.v = __ldg((const double2 *)p);
      *(double2 *)(q.v + 2) = __ldg((const double2 *)p + 1);
#endif
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < left) q.v[i] = __ldg(p + i);
  }
  return q;
}

#if STORAGE < 2
// 16-bit rows: C (16, 8) += A (16, 16) B (16, 8) with fp32 accumulation.
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
#if STORAGE == 0
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit numbers, each transposed; lane i names row i of them.
__device__ __forceinline__ void load_transposed(unsigned (&m)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ unsigned shared_address(const void *p) {
  return (unsigned)__cvta_generic_to_shared(p);
}

// Start copying eight neighbours of a row, zero beyond `left` or where there is no row.
__device__ __forceinline__ void copy_group(unsigned char *to, const stored_t *from, bool there,
                                           int left, int aligned) {
  if (aligned) {
    const int bytes = there && left > 0 ? 16 : 0;  // the rest is filled with zeros, not read
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) ((stored_t *)to)[j] = there && j < left ? from[j] : (stored_t)0;
  }
}
#endif  // STORAGE < 2
