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
// wide: 1 where info is set, share > limit or some G_jj < least_square. Heads with
// selected[h] == 0 are left alone.

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
    whiten(const double *G, double *W, int d, int *info, double *stats, double limit,
           double least_square, int *wide, const int *selected) {
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
    bool small = false;
    for (int b = lane; b < d; b += 32) {
      share += sums[b], spread += sums[width + b];
      small |= diagonal[b] < least_square * down[b] * down[b];
    }
    small = __any_sync(0xffffffffu, small);
    share = warp_sum(share), spread = warp_sum(spread);
    if (lane == 0) {
      if (failed || !(share < 1e300)) share = spread = 1.0 / 0.0;
      info[head] = failed;
      stats[4 * head] = share;
      stats[4 * head + 1] = spread;
      stats[4 * head + 2] = sqrt(share);
      stats[4 * head + 3] = least;
      if (wide) wide[head] = failed || small || !(share <= limit);
    }
  }
}
