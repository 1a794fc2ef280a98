// Gram matrices, whiteners and whitened row norms of stacks of rows, on the tensor cores.
//
// Compiled at run time, once for each storage type and width, with the macros
//   STORAGE  0 bfloat16, 1 float16, 2 float32, 3 float64
//   DP       64 or 128: number of columns, padded with zeros
// or with WHITEN alone, for the kernel over the small matrices. K is (heads, n, d); strides are
// in elements, columns are contiguous. `aligned` says that rows may be read in vectors.
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
// Nothing here is documented by the vendor: on other chips `probe` of the benchmark first.
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

#if !defined(WHITEN)
#if STORAGE == 0
#include <cuda_bf16.h>
#elif STORAGE == 1
#include <cuda_fp16.h>
#endif
#endif

typedef long long index_t;
#define MOST_ROWS 0x7fffffff  // of a CTA

// ---------------------------------------------------------------------------------------------
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

#if defined(WHITEN)
// ---------------------------------------------------------------------------------------------
// W (d, d) upper triangular with W^T G W = I, one CTA a head, d <= 128.
//
// G is scaled by powers of two to a diagonal in [1/4, 1) and kept in shared memory, upper
// triangle; elimination on [G | I] leaves R above and builds X = R^-T = W^T in the lower
// triangle, which G does not need. 16 columns at a time: one warp eliminates the diagonal
// block (lanes 0 to 15 its columns, 16 to 31 those of the identity), then the block row
// is multiplied by the inverse, then the rows below are updated, both by tensor cores.
//
// info: 0, or the number of the pivot that was not positive or not finite (W is NaN then).
// stats (heads, 4): share, spread (see the error model), sqrt(share), smallest pivot / G_jj.
// wide: 1 where info is set or share > limit. Heads with selected[h] == 0 are left alone.

#define WARPS 16
#define LEAST_PIVOT 0x1p-100  // of a diagonal from 1/4 to 1: rounding alone leaves more

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// 1 / sqrt(x) to an ulp or two for x from 2^-100 to 1: one cubic step from float32.
__device__ __forceinline__ double inverse_root(double x) {
  const double y = (double)rsqrtf((float)x), e = fma(-x * y, y, 1.0);
  return fma(y * e, fma(0.375, e, 0.5), y);
}

__device__ void eliminate_block(double *S, int pitch, int k0, double *pivots) {
  const int lane = threadIdx.x & 31, column = lane & 15;
  double v[16];
#pragma unroll
  for (int i = 0; i < 16; ++i)
    v[i] = lane < 16 ? S[(k0 + i) * pitch + k0 + column] : (i == column ? 1.0 : 0.0);
#pragma unroll
  for (int k = 0; k < 16; ++k) {
    const double pivot = __shfl_sync(0xffffffffu, v[k], k);
    if (lane == k) pivots[k0 + k] = pivot;
    v[k] *= inverse_root(pivot);
#pragma unroll
    for (int i = k + 1; i < 16; ++i) v[i] -= __shfl_sync(0xffffffffu, v[k], i) * v[k];
  }
  __syncwarp();
  if (lane >= 16) {
#pragma unroll
    for (int i = 0; i < 16; ++i) S[(k0 + i) * pitch + k0 + column] = v[i];
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    whiten(const double *G, double *W, int d, int *info, double *stats, double limit, int *wide,
           const int *selected) {
  const int head = blockIdx.x, tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  if (selected && !selected[head]) return;
  const int g = lane >> 2, t = lane & 3;
  const int blocks = (d + 15) / 16, width = 16 * blocks, pitch = width + 4;
  extern __shared__ double S[];
  double *diagonal = S + width * pitch, *down = diagonal + width, *sums = down + width;
  double *pivots = sums + 2 * width;
  __shared__ int failed;
  G += (size_t)head * d * d;
  W += (size_t)head * d * d;

  for (int j = tid; j < width; j += 32 * WARPS) {
    const double square = j < d ? G[(size_t)j * d + j] : 1.0;
    int e = 0;
    if (square > 0.0 && square < 1e308) frexp(sqrt(square), &e);
    down[j] = scalbn(1.0, -e);
    diagonal[j] = square * down[j] * down[j];
  }
  __syncthreads();
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int j = 32 * quarter + lane;
    double x[128 / WARPS];
#pragma unroll
    for (int r = 0; r < 128 / WARPS; ++r) {
      const int i = warp + WARPS * r;
      x[r] = i < d && j < d && j >= i ? G[(size_t)i * d + j] : 0.0;
    }
#pragma unroll
    for (int r = 0; r < 128 / WARPS; ++r) {
      const int i = warp + WARPS * r;
      if (i < width && j < width)
        S[i * pitch + j] = i >= d && i == j ? 1.0 : x[r] * down[i] * down[j];
    }
  }
  __syncthreads();

  if (warp == 0) eliminate_block(S, pitch, 0, pivots);
  __syncthreads();
  for (int block = 0; block < blocks; ++block) {
    const int k0 = 16 * block;
    // block row: R right of the diagonal, X left of it
    for (int tile = warp; tile < 2 * blocks; tile += WARPS) {
      if (tile / 2 == block) continue;
      double c[4] = {0.0, 0.0, 0.0, 0.0};
#pragma unroll
      for (int k = 0; k < 16; k += 8) {
        const double *A = S + (k0 + g) * pitch + k0 + k + t;
        const double *B = S + (k0 + k + t) * pitch + 8 * tile + g;
        const double a[4] = {A[0], A[8 * pitch], A[4], A[8 * pitch + 4]};
        multiply_add(c, a, B[0], B[4 * pitch]);
      }
      __syncwarp();
      double *C = S + (k0 + g) * pitch + 8 * tile + 2 * t;
      C[0] = c[0], C[1] = c[1], C[8 * pitch] = c[2], C[8 * pitch + 1] = c[3];
    }
    __syncthreads();
    // rows below: what is left of G, and X so far; the first warp has the next diagonal block
    // and goes on to eliminate it
    auto update = [&](int row, int tile) {
      double *C = S + (16 * row + g) * pitch + 8 * tile + 2 * t;
      double c[4] = {C[0], C[1], C[8 * pitch], C[8 * pitch + 1]};
#pragma unroll
      for (int k = 0; k < 16; k += 8) {
        const double *A = S + (k0 + k + t) * pitch + 16 * row + g;
        const double *B = S + (k0 + k + t) * pitch + 8 * tile + g;
        const double a[4] = {-A[0], -A[8], -A[4 * pitch], -A[4 * pitch + 8]};
        multiply_add(c, a, B[0], B[4 * pitch]);
      }
      C[0] = c[0], C[1] = c[1], C[8 * pitch] = c[2], C[8 * pitch + 1] = c[3];
    };
    const int next = block + 1, left = 2 * next;
    if (warp == 0) {
      if (next < blocks) {
        update(next, 2 * next);
        update(next, 2 * next + 1);
        __syncwarp();
        eliminate_block(S, pitch, 16 * next, pivots);
      }
    } else {
      int task = warp - 1;
      for (int row = next; row < blocks; ++row) {
        const int from = 2 * row + (row == next ? 2 : 0), all = left + 2 * blocks - from;
        for (; task < all; task += WARPS - 1)
          update(row, task < left ? task : from + task - left);
        task -= all;
      }
    }
    __syncthreads();
  }

  double least = 1e300;
  int bad = width + 1;
  if (warp == 0) {
    for (int j = lane; j < d; j += 32) {
      if (!(pivots[j] > LEAST_PIVOT && pivots[j] < 1e300)) bad = min(bad, j + 1);
      least = fmin(least, pivots[j] / diagonal[j]);
    }
#pragma unroll
    for (int step = 16; step; step >>= 1) {
      bad = min(bad, __shfl_xor_sync(0xffffffffu, bad, step));
      least = fmin(least, __shfl_xor_sync(0xffffffffu, least, step));
    }
    if (lane == 0) failed = bad <= d ? bad : 0;
  }
  for (int b = warp; b < d; b += WARPS) {
    double share = 0.0, spread = 0.0;
    for (int a = lane; a <= b; a += 32) {
      const double x = S[b * pitch + a];
      share += diagonal[a] * x * x;
      spread += sqrt(diagonal[a]) * fabs(x);
    }
    share = warp_sum(share), spread = warp_sum(spread);
    if (lane == 0) sums[b] = share, sums[width + b] = spread * spread;
  }
  __syncthreads();
  const double nothing = failed ? nan("") : 0.0;
  for (int a = warp; a < d; a += WARPS)
    for (int b = lane; b < d; b += 32)
      W[(size_t)a * d + b] = (b >= a ? S[b * pitch + a] * down[a] : 0.0) + nothing;
  if (warp == 0) {
    double share = 0.0, spread = 0.0;
    for (int b = lane; b < d; b += 32) share += sums[b], spread += sums[width + b];
    share = warp_sum(share), spread = warp_sum(spread);
    if (lane == 0) {
      if (failed || !(share < 1e300)) share = spread = 1.0 / 0.0;
      info[head] = failed;
      stats[4 * head] = share;
      stats[4 * head + 1] = spread;
      stats[4 * head + 2] = sqrt(share);
      stats[4 * head + 3] = least;
      if (wide) wide[head] = failed || !(share <= limit);
    }
  }
}

#else
// ---------------------------------------------------------------------------------------------
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

// ---------------------------------------------------------------------------------------------
// Gram matrices: the upper triangle in tiles of 16 x 8, R + 1 of them in the registers of each
// of R warps. Warp w < R / 2 has the first R + 1 tiles of block row w; warp R / 2 + i has the
// other R - 1 - 2 i of block row i and all 2 + 2 i of block row R - 1 - i.
// A CTA sums a range of rows of one block of one head; gram_sum adds what they found.
#define R (DP / 16)
#define TILES (R + 1)
#define GRAM_THREADS (32 * R)
#define PARTIAL (R * TILES * 128)

struct Part {
  int row0, row1, col0, col1, split;
  // whether a tile is the first of its block row: split is odd, or beyond all tiles
  __device__ bool begins(int tile) const { return tile == 0 || (tile % 2 && tile == split); }
  __device__ int row(int tile) const { return tile < split ? row0 : row1; }
  __device__ int col(int tile) const { return tile < split ? col0 + tile : col1 + tile; }
};

__device__ __forceinline__ Part part_of(int warp) {
  if (warp < R / 2) return Part{warp, warp, 2 * warp, 2 * warp, TILES + 1};
  const int i = warp - R / 2, split = R - 1 - 2 * i;
  return Part{i, R - 1 - i, 2 * i + R + 1, 2 * (R - 1 - i) - split, split};
}

// The rows of a CTA: `count` chunks of `chunk` rows from `first` on, none at or after `end`.
struct Span {
  int head;
  index_t first, end;
  int count;
};

__device__ __forceinline__ int rows_of(const Span &span) {
  const index_t rows = span.end - span.first;
  return (int)(rows < MOST_ROWS ? rows : MOST_ROWS);
}

__device__ __forceinline__ Span span_of(index_t n, index_t block, int blocks, int splits,
                                        int chunk) {
  const int item = blockIdx.x / splits, split = blockIdx.x % splits;
  const index_t start = (index_t)(item % blocks) * block;
  const index_t end = start + block < n ? start + block : n;
  const index_t chunks = (end - start + chunk - 1) / chunk;
  const index_t from = chunks * split / splits, to = chunks * (split + 1) / splits;
  return Span{item / blocks, start + from * chunk, end, (int)(to - from)};
}

extern "C" __global__ void __launch_bounds__(256)
    gram_sum(const double *partial, double *G, int d, int blocks, int splits,
             const int *selected) {
  const int pieces = PARTIAL / 256, item = blockIdx.x / pieces;
  if (selected && !selected[item / blocks]) return;
  const int index = blockIdx.x % pieces * 256 + threadIdx.x;
  partial += (size_t)item * splits * PARTIAL + index;
  double sum = 0.0;
#pragma unroll 8
  for (int s = 0; s < splits; ++s) sum += partial[(size_t)s * PARTIAL];
  const int lane = index % 32, i = index / 32 % 4, tile = index / 128 % TILES;
  const Part part = part_of(index / (128 * TILES));
  const int row = 16 * part.row(tile) + (lane >> 2) + 8 * (i >> 1);
  const int col = 8 * part.col(tile) + 2 * (lane & 3) + (i & 1);
  if (row > col || col >= d) return;
  G += (size_t)item * d * d;
  G[(size_t)row * d + col] = sum;
  G[(size_t)col * d + row] = sum;
}

// In float64. Rows are widened (and weighted) on their way to shared memory.
#ifndef WIDE_ROWS
#define WIDE_ROWS 16
#endif
#ifndef WIDE_CTAS
#define WIDE_CTAS 2
#endif
#define QUADS (WIDE_ROWS / 8)
#define WIDE_PITCH (DP + 4)  // rows 4 apart in banks: fragments are read without conflicts

extern "C" __global__ void __launch_bounds__(GRAM_THREADS, WIDE_CTAS)
    gram_wide(const stored_t *K, index_t head_stride, index_t row_stride, index_t n, int d,
              int aligned, const double *scale, index_t block, int blocks, int splits,
              const int *selected, double *partial) {
  extern __shared__ double shared_wide_gram[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const Span span = span_of(n, block, blocks, splits, WIDE_ROWS);
  if (selected && !selected[span.head]) return;
  const Part part = part_of(warp);
  K += span.head * head_stride;
  if (scale) scale += span.head * n;
  double c[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.0;

  // a thread carries some quads of each chunk, eight rows apart
  const int quad_row = tid / (DP / 4), quad_col = 4 * (tid % (DP / 4));
  const index_t chunk_stride = WIDE_ROWS * row_stride;
  const stored_t *at = K + (span.first + quad_row) * row_stride + quad_col;
  int rows = rows_of(span) - quad_row;
  Quad held[QUADS];
  auto fetch = [&]() {
#pragma unroll
    for (int i = 0; i < QUADS; ++i)
      held[i] = load_quad(at + 8 * i * row_stride, rows > 8 * i ? d - quad_col : 0, aligned);
    at += chunk_stride, rows -= WIDE_ROWS;
  };
  auto put = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < QUADS; ++i) {
      const int to = ((chunk & 1) * WIDE_ROWS + quad_row + 8 * i) * WIDE_PITCH + quad_col;
      double x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = widen(held[i].v[j]);
      if (scale) {
        const index_t row = span.first + (index_t)chunk * WIDE_ROWS + quad_row + 8 * i;
        const double weight = row < span.end ? scale[row] : 0.0;
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] *= weight;
      }
      *(double2 *)&shared_wide_gram[to] = make_double2(x[0], x[1]);
      *(double2 *)&shared_wide_gram[to + 2] = make_double2(x[2], x[3]);
    }
  };

  if (span.count) {
    fetch();
    put(0);
  }
  __syncthreads();
  for (int chunk = 0; chunk < span.count; ++chunk) {
    if (chunk + 1 < span.count) fetch();
    const double *stage = shared_wide_gram + (chunk & 1) * WIDE_ROWS * WIDE_PITCH;
#pragma unroll
    for (int k = 0; k < WIDE_ROWS; k += 8) {
      const double *line = stage + (k + t) * WIDE_PITCH + g, *A = line + 16 * part.row0;
      const double *B = line + 8 * part.col0;
      double a[4];
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        if (i && part.begins(i)) A = line + 16 * part.row1, B = line + 8 * part.col1;
        if (part.begins(i))
          a[0] = A[0], a[1] = A[8], a[2] = A[4 * WIDE_PITCH], a[3] = A[4 * WIDE_PITCH + 8];
        multiply_add(c[i], a, B[8 * i], B[8 * i + 4 * WIDE_PITCH]);
      }
    }
    if (chunk + 1 < span.count) put(chunk + 1);
    __syncthreads();
  }
  partial += (size_t)blockIdx.x * PARTIAL + warp * TILES * 128 + lane;
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) partial[i * 128 + j * 32] = c[i][j];
}

// ---------------------------------------------------------------------------------------------
// ||k_j W||^2 in float64: a warp takes 16 rows from global memory straight into fragments;
// W is in shared memory. The inner index is permuted, alike in both factors, so that a lane
// reads four neighbours of a row at once.
#define NORM_THREADS 256
#define W_PITCH (DP + 1)

// The warps of a CTA take the tiles first, first + 1, ... of each head in turn.
struct Run {
  int head;
  index_t first, end;
};

__device__ __forceinline__ Run next_run(index_t first, index_t last, index_t tiles) {
  const index_t head = first / tiles, stop = (head + 1) * tiles;
  return Run{(int)head, first - head * tiles, (stop < last ? stop : last) - head * tiles};
}

// Where infinities cancel nothing is known of a row: it may be anything.
template <typename F>
__device__ __forceinline__ F known(F x) {
  return x == x ? x : (F)(1.0 / 0.0);
}

template <bool UPPER>
__device__ void norms_wide(const stored_t *K, index_t head_stride, index_t row_stride, index_t n,
                           int heads, int d, int c, int aligned, const double *W,
                           const int *selected, out_t *out) {
  extern __shared__ double shared_wide[];
  double *S = shared_wide;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const index_t tiles = (n + 15) / 16;
  index_t first = tiles * heads * blockIdx.x / gridDim.x;
  const index_t last = tiles * heads * (blockIdx.x + 1) / gridDim.x;
  while (first < last) {
    const Run run = next_run(first, last, tiles);
    first += run.end - run.first;
    if (selected && !selected[run.head]) continue;
    __syncthreads();
    const double *from = W + (size_t)run.head * d * c;
    for (int i = tid; i < DP * DP; i += NORM_THREADS) {
      const int row = i / DP, col = i % DP;
      S[row * W_PITCH + col] = row < d && col < c ? from[(size_t)row * c + col] : 0.0;
    }
    __syncthreads();
    for (index_t tile = run.first + warp; tile < run.end; tile += NORM_THREADS / 32) {
      const index_t row0 = 16 * tile + g;
      const stored_t *at = K + run.head * head_stride + row0 * row_stride + 4 * t;
      const index_t left0 = row0 < n ? d - 4 * t : 0, left1 = row0 + 8 < n ? d - 4 * t : 0;
      double z[DP / 8][4];
#pragma unroll
      for (int i = 0; i < DP / 8; ++i) z[i][0] = z[i][1] = z[i][2] = z[i][3] = 0.0;
      Quad x0 = load_quad(at, left0, aligned);
      Quad x1 = load_quad(at + 8 * row_stride, left1, aligned);
#pragma unroll
      for (int k = 0; k < DP; k += 16) {
        const Quad y0 = x0, y1 = x1;
        if (k + 16 < DP) {
          x0 = load_quad(at + k + 16, left0 - k - 16, aligned);
          x1 = load_quad(at + 8 * row_stride + k + 16, left1 - k - 16, aligned);
        }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const double a[4] = {widen(y0.v[2 * s]), widen(y1.v[2 * s]), widen(y0.v[2 * s + 1]),
                               widen(y1.v[2 * s + 1])};
          const double *B = S + (k + 4 * t + 2 * s) * W_PITCH + g;
#pragma unroll
          for (int i = UPPER ? k / 8 : 0; i < DP / 8; ++i)
            multiply_add(z[i], a, B[8 * i], B[8 * i + W_PITCH]);
        }
      }
      double norm0 = 0.0, norm1 = 0.0;
#pragma unroll
      for (int i = 0; i < DP / 8; ++i) {
        norm0 += z[i][0] * z[i][0] + z[i][1] * z[i][1];
        norm1 += z[i][2] * z[i][2] + z[i][3] * z[i][3];
      }
#pragma unroll
      for (int step = 1; step < 4; step <<= 1) {
        norm0 += __shfl_xor_sync(0xffffffffu, norm0, step);
        norm1 += __shfl_xor_sync(0xffffffffu, norm1, step);
      }
      const index_t row = row0 + 8 * t;
      if (t < 2 && row < n) out[run.head * n + row] = (out_t)known(t ? norm1 : norm0);
    }
  }
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS, 1)
    norms_wide_upper(const stored_t *K, index_t head_stride, index_t row_stride, index_t n,
                     int heads, int d, int c, int aligned, const double *W, const int *selected,
                     out_t *out) {
  norms_wide<true>(K, head_stride, row_stride, n, heads, d, c, aligned, W, selected, out);
}

extern "C" __global__ void __launch_bounds__(NORM_THREADS, 1)
    norms_wide_full(const stored_t *K, index_t head_stride, index_t row_stride, index_t n,
                    int heads, int d, int c, int aligned, const double *W, const int *selected,
                    out_t *out) {
  norms_wide<false>(K, head_stride, row_stride, n, heads, d, c, aligned, W, selected, out);
}

#if STORAGE < 2
// ---------------------------------------------------------------------------------------------
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

// Gram matrices: chunks of 64 rows in shared memory, four stages. Groups of eight columns are
// permuted by row so that ldmatrix finds eight rows in different banks.
#define CHUNK 64
#define STAGES 4
#define STAGE_BYTES (CHUNK * DP * 2)

extern "C" __global__ void __launch_bounds__(GRAM_THREADS, DP == 128 ? 2 : 5)
    gram_fast(const stored_t *K, index_t head_stride, index_t row_stride, index_t n, int d,
              int aligned, index_t block, int blocks, int splits, double *partial) {
  extern __shared__ __align__(128) unsigned char shared_gram[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  const Span span = span_of(n, block, blocks, splits, CHUNK);
  const Part part = part_of(warp);
  K += span.head * head_stride;
  double sum[TILES][4];
#pragma unroll
  for (int i = 0; i < TILES; ++i) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0.0;
  // a thread copies one group of eight columns from every 16th row
  const int copy_row = tid / (DP / 8), group = tid % (DP / 8);
  const int place = copy_row * DP * 2 + ((group ^ (copy_row & 7)) << 4);
  const index_t chunk_stride = CHUNK * row_stride;
  const stored_t *from = K + (span.first + copy_row) * row_stride + 8 * group;
  int rows = rows_of(span) - copy_row;
  if (8 * group >= d) rows = 0;
  auto fetch = [&](int chunk) {
    unsigned char *to = shared_gram + chunk % STAGES * STAGE_BYTES + place;
    if (chunk < span.count) {
#pragma unroll
      for (int i = 0; i < CHUNK; i += 16) {
        copy_group(to + i * DP * 2, from + i * row_stride, rows > i, d - 8 * group, aligned);
      }
      from += chunk_stride, rows -= CHUNK;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) fetch(i);

  // lane l of B names row l of 32; of A, row l % 8 (+ 8 from 16 on), columns 8.. for odd l / 8
  const unsigned turn = (lane & 7) << 4, base = shared_address(shared_gram);
  const unsigned line_a = base + ((lane & 7) + 8 * (lane >> 4)) * DP * 2;
  const unsigned line_b = base + lane * DP * 2;
  const unsigned group_a = ((lane >> 3) & 1) << 4;
  for (int chunk = 0; chunk < span.count; ++chunk) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
    __syncthreads();
    fetch(chunk + STAGES - 1);
    const unsigned stage = chunk % STAGES * STAGE_BYTES;
    unsigned a[CHUNK / 16][4], group_b = 0;
    // tile by tile, so that the sums of one overlap the products of the next
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      if (part.begins(i)) {
        const unsigned at =
            line_a + stage + (((unsigned)(i ? part.row1 : part.row0) << 5 | group_a) ^ turn);
#pragma unroll
        for (int k = 0; k < CHUNK / 16; ++k) load_transposed(a[k], at + 16 * k * DP * 2);
      }
      if (part.begins(i)) group_b = (i ? part.col1 : part.col0) << 4;
      const unsigned at = line_b + stage + ((group_b + 16 * i) ^ turn);
      float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int k = 0; k < CHUNK / 16; k += 2) {
        unsigned b[4];
        load_transposed(b, at + 16 * k * DP * 2);
        multiply_add(c, a[k], b[0], b[1]);
        multiply_add(c, a[k + 1], b[2], b[3]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += (double)c[j];
    }
  }
  partial += (size_t)blockIdx.x * PARTIAL + warp * TILES * 128 + lane;
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) partial[i * 128 + j * 32] = sum[i][j];
}

// ---------------------------------------------------------------------------------------------
// ||k_j W||^2 of 16-bit rows. `split_whitener` writes W as a sum of 16-bit parts, scaled by
// column, with groups of eight columns permuted by row as above. In `norms_fast` a warp has 32
// rows of K as fragments in registers while its next 32 are on their way to shared memory.
#if STORAGE == 0
#define PARTS 3
#define PART_BITS 0  // bfloat16 has exponents enough
#define TOP_EXPONENT 1
#else
#define PARTS 2
#define PART_BITS 11  // the second part is stored 2^11 times larger
#define TOP_EXPONENT 15
#endif

extern "C" __global__ void __launch_bounds__(256)
    split_whitener(const double *W, int d, int c, stored_t *parts, float *scales) {
  const int head = blockIdx.x / (DP / 32), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int col = blockIdx.x % (DP / 32) * 32 + lane;
  __shared__ double tops[8][32];
  W += (size_t)head * d * c;
  parts += (size_t)head * PARTS * DP * DP;
  double x[DP / 8], top = 0.0;
#pragma unroll
  for (int i = 0; i < DP / 8; ++i) {
    const int k = 8 * i + warp;
    x[i] = k < d && col < c ? W[(size_t)k * c + col] : 0.0;
    top = fmax(top, fabs(x[i]));
  }
  tops[warp][lane] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; ++i) top = fmax(top, tops[i][lane]);
  int e = 0;
  if (top > 0.0 && top < 1e300) frexp(top, &e);
  e -= TOP_EXPONENT;  // top 2^-e is in [2^(TOP_EXPONENT - 1), 2^TOP_EXPONENT)
  const double down = scalbn(1.0, -e);
  // beyond the range of float32 nothing is known
  if (warp == 0)
    scales[head * DP + col] = e > -120 && e < 120 ? scalbnf(1.0f, e) : __int_as_float(0x7fc00000);
#pragma unroll
  for (int i = 0; i < DP / 8; ++i) {
    const int row = 8 * i + warp;
    double rest = x[i] * down;
    stored_t *to = parts + row * DP + (((col >> 3) ^ (row & 7)) << 3) + (col & 7);
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
#if STORAGE == 0
      const stored_t bits = __bfloat16_as_ushort(__double2bfloat16(rest));
#else
      const stored_t bits = __half_as_ushort(__double2half(rest));
#endif
      to[p * DP * DP] = bits;
      rest = (rest - widen(bits)) * (double)(1 << PART_BITS);
    }
  }
}

#define FAST_WARPS 16
#define WARP_BYTES (32 * DP * 2)

__device__ __forceinline__ void load_matrices(unsigned (&m)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// Start copying rows row0 to row0 + 31, zero from `end` on, to the place of one warp.
__device__ __forceinline__ void load_rows(const stored_t *K, index_t row_stride, index_t row0,
                                          index_t end, int d, int aligned,
                                          unsigned char *place) {
  const int groups = DP / 8, lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < groups; ++i) {
    const int row = (32 * i + lane) / groups, group = (32 * i + lane) % groups;
    copy_group(place + row * DP * 2 + ((group ^ (row & 7)) << 4),
               K + (row0 + row) * row_stride + 8 * group, row0 + row < end, d - 8 * group, aligned);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <bool UPPER>
__device__ __forceinline__ void norms_fast(const stored_t *K, index_t head_stride,
                                           index_t row_stride, index_t n, int heads, int d,
                                           int aligned, const stored_t *parts,
                                           const float *scales, const int *wide, float *out) {
  extern __shared__ __align__(128) unsigned char shared_norms[];
  float *scale = (float *)(shared_norms + PARTS * DP * DP * 2);
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
  unsigned char *place = shared_norms + PARTS * DP * DP * 2 + DP * 4 + warp * WARP_BYTES;
  const index_t tiles = (n + 31) / 32;
  index_t first = tiles * heads * blockIdx.x / gridDim.x;
  const index_t last = tiles * heads * (blockIdx.x + 1) / gridDim.x;
  // lane l names row l % 16 of 16, columns 8.. from l = 16 on, of K and of W
  const unsigned line = shared_address(shared_norms) + (lane & 15) * DP * 2;
  const unsigned own = shared_address(place) + (lane & 15) * DP * 2;
  while (first < last) {
    const Run run = next_run(first, last, tiles);
    first += run.end - run.first;
    if (wide && wide[run.head]) continue;
    const stored_t *rows = K + run.head * head_stride;
    if (run.first + warp < run.end)
      load_rows(rows, row_stride, 32 * (run.first + warp), n, d, aligned, place);
    __syncthreads();
    const uint4 *from = (const uint4 *)(parts + (size_t)run.head * PARTS * DP * DP);
    for (int i = tid; i < PARTS * DP * DP / 8; i += 32 * FAST_WARPS)
      ((uint4 *)shared_norms)[i] = from[i];
    if (tid < DP) scale[tid] = scales[run.head * DP + tid];
    __syncthreads();
    for (index_t tile = run.first + warp; tile < run.end; tile += FAST_WARPS) {
      unsigned x[2][DP / 16][4];
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      __syncwarp();
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int k = 0; k < DP / 16; ++k)
          load_matrices(x[m][k],
                        own + 16 * m * DP * 2 + (((2 * k + (lane >> 4)) ^ (lane & 7)) << 4));
      __syncwarp();
      if (tile + FAST_WARPS < run.end)
        load_rows(rows, row_stride, 32 * (tile + FAST_WARPS), n, d, aligned, place);
      float norm[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of rows g, g + 8, g + 16, g + 24
#pragma unroll
      for (int group = 0; group < DP / 16; ++group) {
        const unsigned at = line + (((2 * group + (lane >> 4)) ^ (lane & 7)) << 4);
        float z[2][2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int j = 0; j < 2; ++j) z[m][j][0] = z[m][j][1] = z[m][j][2] = z[m][j][3] = 0.0f;
#pragma unroll
        for (int p = PARTS - 1; p >= 0; --p) {  // small parts first
          if (PART_BITS && p < PARTS - 1)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) z[m][j][i] *= 1.0f / (1 << PART_BITS);
#pragma unroll
          for (int k = 0; k < (UPPER ? group + 1 : DP / 16); ++k) {
            unsigned b[4];
            load_transposed(b, at + p * DP * DP * 2 + 16 * k * DP * 2);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              multiply_add(z[m][0], x[m][k], b[0], b[1]);
              multiply_add(z[m][1], x[m][k], b[2], b[3]);
            }
          }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 up = *(const float2 *)(scale + 16 * group + 8 * j + 2 * t);
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const float y0 = z[m][j][2 * r] * up.x, y1 = z[m][j][2 * r + 1] * up.y;
              norm[2 * m + r] += y0 * y0 + y1 * y1;
            }
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int step = 1; step < 4; step <<= 1)
          norm[r] += __shfl_xor_sync(0xffffffffu, norm[r], step);
      const float mine = t & 2 ? (t & 1 ? norm[3] : norm[2]) : (t & 1 ? norm[1] : norm[0]);
      const index_t row = 32 * tile + g + 8 * t;
      if (row < n) out[run.head * n + row] = known(mine);
    }
  }
}

extern "C" __global__ void __launch_bounds__(32 * FAST_WARPS, 1)
    norms_fast_upper(const stored_t *K, index_t head_stride, index_t row_stride, index_t n,
                     int heads, int d, int aligned, const stored_t *parts, const float *scales,
                     const int *wide, float *out) {
  norms_fast<true>(K, head_stride, row_stride, n, heads, d, aligned, parts, scales, wide, out);
}

extern "C" __global__ void __launch_bounds__(32 * FAST_WARPS, 1)
    norms_fast_full(const stored_t *K, index_t head_stride, index_t row_stride, index_t n,
                     int heads, int d, int aligned, const stored_t *parts, const float *scales,
                     const int *wide, float *out) {
  norms_fast<false>(K, head_stride, row_stride, n, heads, d, aligned, parts, scales, wide, out);
}
#endif  // STORAGE < 2
#endif  // WHITEN
