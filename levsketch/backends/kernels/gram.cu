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

#if STORAGE < 2
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
#endif  // STORAGE < 2
