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
