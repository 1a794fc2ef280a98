// Gram matrices, whiteners and whitened row norms of stacks of rows, on the tensor cores.
//
// Before all other files of this folder. Compiled at run time: whiten.cu, over small matrices,
// once; rows.cu with gram.cu or with norms.cu once for each storage type and width, with the macros
//   STORAGE  0 bfloat16, 1 float16, 2 float32, 3 float64
//   DP       64 or 128: number of columns, padded with zeros
// K is (heads, n, d); strides are in elements, columns are contiguous. `aligned` says that rows
// may be read in vectors.
// Nothing is summed in an order that depends on timing: the same input gives the same bytes.
//
// ERROR MODEL (u = 2^-53). D_a is the norm of column a of K, |.| is taken entrywise.
//
// Tensor cores with fp32 accumulation. Products of two 16-bit numbers are exact (16 or 22
// bits). One k16 step adds 16 of them to an accumulator: the addends are aligned to the
// largest exponent e among them, cut off below 2^(e - f), added exactly, and the sum is cut to
// 24 bits, towards zero: a bias, not noise. On Hopper all 17 addends at once with f = 25 (probed:
// sixteen 2^-25 beside a 1 count in full, sixteen 2^-26 not at all); for Ampere two halves of
// eight with f = 24 are reported. The largest addend loses nothing, so with S the sum of all
// magnitudes a step is off by at most
//     eps S,  eps = 16 2^-25 + 2^-23 = 5 2^-23 (Hopper),  2 (8 2^-24 + 2^-23) = 10 2^-23 (Ampere).
// Nothing here is documented by the vendor: on other chips the probe in tests/gpu/test_cuda_kernels.py first.
// Underflow: subnormal products count, what is below 2^-149 is lost; with columns of norm
// 2^-50 or more that is below all else here. Beyond 2^128 a sum is infinite, and then a
// diagonal entry of the Gram matrix is infinite or NaN.
//
// Gram matrix of 16-bit rows. At most 64 rows = 4 steps in fp32, then sums in float64. S of a
// chunk is sum |k_ja k_jb| over it, hence by Cauchy and Schwarz
//     |G~ - G|_ab <= gamma D_a D_b,  gamma = 4 eps + n u = 20 2^-23 = 2.4e-6 on Hopper
// (seen: 7e-7 at most, 1e-7 typically). Gram matrix of wide rows (float32, float64, or 16 bits
// when asked for): float64 FMAs, m rows to a CTA, s CTAs: gamma = (m + s + 1) u / (1 - ...),
// at most (n + 1) u; with weights of rows two roundings more.
//
// What that does to scores: x^T (G~ - G) x <= gamma (sum_a D_a |x_a|)^2, and with x = W y
//     <= gamma spread |y|^2,   spread = | |W|^T D |^2 <= d share,   share = sum_a D_a^2 |W_a|^2.
// `whiten` returns both; the spread of nearly orthogonal columns is not far above d, where
// d share is d^2. The Cholesky factorisation and the inverse (by forward substitution on
// [G | I], so that W R = I + E with |E| <= c |W||R|, c = (2 d + 20) u) add at most
// (3 d + 30) u d share to that; share is |W|_F^2 for columns of norm one.
//
// Row norms of 16-bit rows. W 2^-e = W1 + W2 (+ W3), columns scaled by powers of two:
//     bfloat16, three parts: |W - sum| <= 2^-27 |W|; float16, two parts: 2^-22 |W| + 2^-50 max.
// Smaller parts are added first, so that DP / 16 steps round at the full size:
//     |z~ - z| <= g |k||W|,  g = (DP / 16 + 2) eps = 50 2^-23 = 6e-6 at 128 columns
// (seen: 3e-7 of |z| at most), and the squares in fp32 add (d / 8 + 8) 2^-24 to the relative error
// of the norm squared. | |k||W| | <= sqrt(spread) for rows of K, and <= |z| sqrt(d share) always.
// Wide row norms: g = (d + 1) u, squares likewise; 2^-24 where the result is float32.

typedef long long index_t;

// float64 on tensor cores: C (16, 8) += A (16, 8) B (8, 8). Lane 4 g + t holds
// A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]; B[t][g], B[t + 4][g];
// C[g][2 t], C[g][2 t + 1], C[g + 8][2 t], C[g + 8][2 t + 1].
__device__ __forceinline__ void multiply_add(double (&c)[4], const double (&a)[4],
                                             double b0, double b1) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b0), "d"(b1));
#else
  const double b[2] = {b0, b1};
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int m = 0; m < 2; ++m)
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+d"(c[2 * m]), "+d"(c[2 * m + 1])
                   : "d"(a[2 * k + m]), "d"(b[k]));
#endif
}
