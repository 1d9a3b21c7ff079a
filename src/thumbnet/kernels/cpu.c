/* CPU kernels for processors that calculate in bfloat16: AVX-512 BF16 (AMD from Zen 4 on, Intel's Cooper Lake), and
 * for the gradient of weights AMX (Intel from Sapphire Rapids on). ops.py says what each computes, in PyTorch.
 *
 * Pictures are bfloat16, stored [N, H, W, C] ("channels last"); statistics and gradients of weights are
 * float32. Threads are OpenMP's, the same that PyTorch uses. Who adds up what does not depend on timing: the
 * same number of threads gives the same bits.
 */
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

/* Linux gives the tiles' state only to processes that ask. 1 where it did. */
int ask_for_tiles(void) {
    const int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* ---- Gradient of a 3x3 convolution's weights --------------------------------------------------------------
 *
 * dw[o][dy][dx][i] = sum over positions p of g[p][o] * x[p + (dy, dx)][i]: for each of the nine taps a matrix
 * product whose inner dimension is all positions of all pictures. Positions are laid out with a border of
 * zeros, (H + 1) x (W + 1) a picture, so that a tap is a constant distance in the layout. With stride 2 there are
 * four such layouts of x, of its even and odd rows and columns, each as large as g's.
 *
 * A tile instruction multiplies A [16 x 32] with B [32 x 16], B's rows interleaved in pairs. Here A is g
 * transposed, B is x, each packed once per chunk of about a thousand positions: they stay in the L2 cache
 * while all nine taps use them. x is packed twice, pairs beginning at even and at odd positions, so that every
 * tap reads whole cache lines.
 */

typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } TileConfig;

enum { CHUNK = 1024, STRIP = 8 }; /* positions packed at a time; tiles of 32 positions between two taps */

/* 16 channels of two positions: bf16 a[c], b[c] side by side in 32 bits. */
static inline __m512i interleave(const bf16 *a, const bf16 *b, __mmask16 mask) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Which of 16 channels from `first` on there are. */
static inline __mmask16 channel_mask(int first, int channels) {
    const int left = channels - first;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
}

static inline void transpose(__m512i r[16]) { /* 16 x 16 of 32 bits */
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    memcpy(r, t, sizeof t);
}

/* x [N, H step, W step, CI], g [N, H, W, CO] (CI, CO <= 4096) -> dw [CO, 3, 3, CI]. Padding 1, stride `step`. */
void conv3x3_weight_gradient(const bf16 *x, const bf16 *g, float *dw, int N, int H, int W, int CI, int CO,
                             int step, int threads) {
    static const bf16 zeros[4096 + 16];
    const int stride = W + 1, picture = (H + 1) * stride;
    int together = CHUNK / picture;
    together = together < 1 ? 1 : together > N ? N : together;
    const int steps = (together * picture + 31) / 32;        /* tiles of 32 positions in a chunk */
    const int halo = stride + 1 + (stride & 1);              /* zeros before the first position; even */
    const int pairs = (halo + 32 * steps + stride + 4) / 2 + 1, layouts = step * step;
    const int blocks_in = (CI + 31) / 32 * 2, blocks_out = (CO + 31) / 32 * 2; /* of 16 channels, even */
    const int chunks = (N + together - 1) / together;

    /* The pixel of the chunk at each position, -1 where there is none. */
    int *pixel = malloc(sizeof(int) * (2 * pairs + 2)); /* of g */
    int *corner = malloc(sizeof(int) * (2 * pairs + 2)); /* of x */
    for (int q = 0; q < 2 * pairs + 2; q++) {
        const int p = q - halo, n = p / picture, row = p % picture / stride, column = p % stride;
        const int outside = p < 0 || n >= together || row >= H || column >= W;
        pixel[q] = outside ? -1 : (n * H + row) * W + column;
        corner[q] = outside ? -1 : (n * H * step + row * step) * W * step + column * step;
    }
    /* Threads share the output channels while sums would not fit a core's cache, and the pictures. */
    int shares = 1;
    while (threads % (2 * shares) == 0 && blocks_out / 2 % (2 * shares) == 0 &&
           36L * CI * CO / shares > 1L << 20)
        shares *= 2;
    const int mine = blocks_out / shares, groups = threads / shares;
    const size_t tiles = (size_t)9 * mine * blocks_in;
    float *sums = allocate(tiles * 1024 * threads);

#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), share = thread % shares, group = thread / shares;
        float *sum = sums + tiles * 256 * thread; /* [tap][block out][block in][16][16] */
        bf16 *xs = allocate((size_t)layouts * 2 * blocks_in * pairs * 64);
        bf16 *gs = allocate((size_t)mine * steps * 1024);
        memset(sum, 0, tiles * 1024);
        TileConfig before, config = {.palette = 1};
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
        _tile_storeconfig(&before); /* oneDNN's: put back at the end */
        _tile_loadconfig(&config);

        const int first = (long)chunks * group / groups, last = (long)chunks * (group + 1) / groups;
        for (int chunk = first; chunk < last; chunk++) {
            const size_t begin = (size_t)chunk * together;
            const bf16 *xc = x + begin * H * W * layouts * CI, *gc = g + begin * H * W * CO;
            const int left = N - chunk * together, pixels = (left < together ? left : together) * H * W;
#define THERE(q) (pixel[q] >= 0 && pixel[q] < pixels)
#define X_AT(q) (THERE(q) ? xc + (size_t)(corner[q] + shift) * CI : zeros)
#define G_AT(q) (THERE(q) ? gc + (size_t)pixel[q] * CO : zeros)
            for (int r = 0; r < layouts * pairs; r++) {
                const int layout = r / pairs, q = r % pairs * 2;
                const int shift = layout / 2 * W * step + layout % 2;
                const bf16 *a = X_AT(q), *b = X_AT(q + 1), *c = X_AT(q + 2);
                for (int i = 0; i < blocks_in; i++) {
                    const __mmask16 mask = channel_mask(16 * i, CI);
                    bf16 *even = xs + (((size_t)layout * 2 * blocks_in + i) * pairs + q / 2) * 32;
                    bf16 *odd = even + (size_t)blocks_in * pairs * 32;
                    _mm512_store_si512(even, interleave(a + 16 * i, b + 16 * i, mask));
                    _mm512_store_si512(odd, interleave(b + 16 * i, c + 16 * i, mask));
                }
            }
            for (int k = 0; k < steps; k++)
                for (int o = 0; o < mine; o++) {
                    const int channel = 16 * (share * mine + o);
                    const __mmask16 mask = channel_mask(channel, CO);
                    __m512i tile[16];
                    for (int j = 0; j < 16; j++) {
                        const int q = halo + 32 * k + 2 * j;
                        tile[j] = interleave(G_AT(q) + channel, G_AT(q + 1) + channel, mask);
                    }
                    transpose(tile);
                    bf16 *to = gs + ((size_t)o * steps + k) * 512;
                    for (int j = 0; j < 16; j++) _mm512_store_si512(to + 32 * j, tile[j]);
                }
#undef THERE
#undef X_AT
#undef G_AT
            for (int o = 0; o < mine; o += 2)
                for (int i = 0; i < blocks_in; i += 2)
                    for (int from = 0; from < steps; from += STRIP) {
                        const int to = from + STRIP < steps ? from + STRIP : steps;
                        for (int tap = 0; tap < 9; tap++) { /* 32 x 32 channels: four tiles of sums */
                            const int dy = tap / 3 - 1, dx = tap % 3 - 1;
                            const int layout = step == 1 ? 0 : (dy != 0) * 2 + (dx != 0);
                            const int down = step == 1 ? dy : -(dy < 0), right = step == 1 ? dx : -(dx < 0);
                            const int q = halo + down * stride + right;
                            const size_t block = (size_t)(layout * 2 + (q & 1)) * blocks_in + i;
                            const bf16 *b0 = xs + (block * pairs + (q >> 1)) * 32;
                            const bf16 *b1 = b0 + (size_t)pairs * 32;
                            const bf16 *a0 = gs + (size_t)o * steps * 512, *a1 = a0 + (size_t)steps * 512;
                            float *s0 = sum + ((size_t)(tap * mine + o) * blocks_in + i) * 256;
                            float *s1 = s0 + blocks_in * 256;
                            _tile_loadd(0, s0, 64);
                            _tile_loadd(1, s0 + 256, 64);
                            _tile_loadd(2, s1, 64);
                            _tile_loadd(3, s1 + 256, 64);
                            for (int k = from; k < to; k++) {
                                _tile_loadd(4, a0 + k * 512, 64);
                                _tile_loadd(6, b0 + k * 512, 64);
                                _tile_dpbf16ps(0, 4, 6);
                                _tile_loadd(7, b1 + k * 512, 64);
                                _tile_dpbf16ps(1, 4, 7);
                                _tile_loadd(5, a1 + k * 512, 64);
                                _tile_dpbf16ps(2, 5, 6);
                                _tile_dpbf16ps(3, 5, 7);
                            }
                            _tile_stored(0, s0, 64);
                            _tile_stored(1, s0 + 256, 64);
                            _tile_stored(2, s1, 64);
                            _tile_stored(3, s1 + 256, 64);
                        }
                    }
        }
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
        free(xs);
        free(gs);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int o = 0; o < CO; o++) {
            const int block = o / 16;
            const float *from = sums + tiles * 256 * (block / mine);
            for (int tap = 0; tap < 9; tap++)
                for (int i = 0; i < CI; i++) {
                    const size_t at =
                        ((size_t)(tap * mine + block % mine) * blocks_in + i / 16) * 256 + o % 16 * 16 + i % 16;
                    float total = 0;
                    for (int n = 0; n < groups; n++) total += from[tiles * 256 * shares * n + at];
                    dw[((size_t)o * 9 + tap) * CI + i] = total;
                }
        }
    }
    free(sums);
    free(pixel);
    free(corner);
}

/* ---- Max-pooling, batch normalisation, addition, activation: one pass where PyTorch takes three to five -----
 *
 * Each channel is scaled and shifted, so that y = act(scale[c] * pool(x)[c] + shift[c] + add). C is a multiple
 * of 32: a cache line of channels is worked on at a time.
 */

enum { NONE, RELU, SILU };

typedef struct { __m512 low, high; } Line; /* 32 channels */

static inline __m512i raw(const bf16 *from) { return _mm512_loadu_si512(from); }

static inline Line widen(__m512i line) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(line));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1));
    return (Line){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}

static inline __m512i narrow(Line line) { return (__m512i)_mm512_cvtne2ps_pbh(line.high, line.low); }

static inline Line floats(const float *from) { return (Line){_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)}; }

static inline Line multiply_add(Line a, Line b, Line c) {
    return (Line){_mm512_fmadd_ps(a.low, b.low, c.low), _mm512_fmadd_ps(a.high, b.high, c.high)};
}

static inline Line plus(Line a, Line b) {
    return (Line){_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}

/* 1 / (1 + exp(-x)), to 1.4e-4, less than bfloat16's rounding. */
static inline __m512 sigmoid(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(t, 0), part = _mm512_sub_ps(t, whole); /* in [-0.5, 0.5] */
    __m512 power = _mm512_set1_ps(5.503e-2f); /* 2^part */
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.42261e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.93253e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.999951f));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1), _mm512_scalef_ps(power, whole)));
}

static inline __m512 activate(__m512 z, int act) {
    if (act == RELU) return _mm512_max_ps(z, _mm512_setzero_ps());
    if (act == SILU) return _mm512_mul_ps(z, sigmoid(z));
    return z;
}

/* The derivative of SiLU at z, times dy. */
static inline __m512 silu_backward(__m512 dy, __m512 z) {
    const __m512 s = sigmoid(z), one = _mm512_set1_ps(1);
    return _mm512_mul_ps(dy, _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one)));
}

/* bfloat16 as 16-bit integers in the same order; its own inverse. */
static inline __m512i sortable(__m512i line) {
    return _mm512_xor_si512(line, _mm512_srli_epi16(_mm512_srai_epi16(line, 15), 1));
}

/* The largest of a 2x2 window's four values, and which it is: the first of them, 0 to 3 in reading order. */
static inline __m512i largest(const bf16 *corner, size_t right, size_t down, __m512i *which) {
    __m512i best = sortable(raw(corner)), index = _mm512_setzero_si512();
    const size_t others[3] = {right, down, down + right};
    for (int i = 0; i < 3; i++) {
        const __m512i value = sortable(raw(corner + others[i]));
        index = _mm512_mask_mov_epi16(index, _mm512_cmpgt_epi16_mask(value, best), _mm512_set1_epi16(i + 1));
        best = _mm512_max_epi16(best, value);
    }
    *which = index;
    return sortable(best);
}

static inline void add_to_doubles(double *to, Line value) {
    float lanes[32];
    _mm512_storeu_ps(lanes, value.low);
    _mm512_storeu_ps(lanes + 16, value.high);
    for (int i = 0; i < 32; i++) to[i] += lanes[i];
}

static void add_up(double *sums, const double *partial, int count, int threads) {
    for (int i = 0; i < count; i++) {
        sums[i] = 0;
        for (int t = 0; t < threads; t++) sums[i] += partial[(size_t)t * count + i];
    }
}

/* x [N, H, W, C] -> pooled [N, H/2, W/2, C] and which [same], where pool is 2; else pooled is x itself.
 * sums [2, C]: of the pooled values and of their squares. */
void pool_and_sum(const bf16 *x, bf16 *pooled, uint8_t *which, double *sums, int N, int H, int W, int C,
                  int pool, int threads) {
    const int h = H / pool, w = W / pool;
    double *partial = calloc((size_t)threads * 2 * C, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        double *mine = partial + (size_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c += 32) {
                Line sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}, square = sum;
                for (int row = 0; row < h; row++) {
                    const bf16 *from = x + ((size_t)n * H + pool * row) * W * C + c;
                    size_t at = ((size_t)n * h + row) * w * C + c;
                    for (int column = 0; column < w; column++, at += C, from += pool * C) {
                        __m512i line, index;
                        if (pool == 2) {
                            line = largest(from, C, (size_t)W * C, &index);
                            _mm512_storeu_si512(pooled + at, line);
                            _mm256_storeu_si256((__m256i *)(which + at), _mm512_cvtepi16_epi8(index));
                        } else
                            line = raw(from);
                        const Line value = widen(line);
                        sum = plus(sum, value);
                        square = multiply_add(value, value, square);
                    }
                }
                add_to_doubles(mine + c, sum);
                add_to_doubles(mine + C + c, square);
            }
    }
    add_up(sums, partial, 2 * C, threads);
    free(partial);
}

/* y = act(scale * pool(x) + shift + add): x [N, H, W, C], y and add (or NULL) [N, H/pool, W/pool, C]. */
void scale_and_activate(const bf16 *x, const bf16 *add, bf16 *y, const float *scale, const float *shift, int N,
                        int H, int W, int C, int pool, int act, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++)
        for (int row = 0; row < h; row++) {
            const bf16 *from = x + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, from += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, from += 32) {
                    __m512i index;
                    const __m512i line = pool == 2 ? largest(from, C, (size_t)W * C, &index) : raw(from);
                    Line z = multiply_add(widen(line), floats(scale + c), floats(shift + c));
                    if (add) z = plus(z, widen(raw(add + at)));
                    _mm512_storeu_si512(y + at, narrow((Line){activate(z.low, act), activate(z.high, act)}));
                }
        }
}

/* dz, the loss' gradient before the activation, from the one behind it: dy, y, pooled, dz [N, positions, C].
 * sums [2, C]: of dz, and of dz * pooled. ReLU asks its result y, SiLU what it was given. */
void backward_sums(const bf16 *dy, const bf16 *pooled, const bf16 *y, bf16 *dz, const float *scale,
                   const float *shift, double *sums, int N, int positions, int C, int act, int threads) {
    double *partial = calloc((size_t)threads * 2 * C, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        double *mine = partial + (size_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c += 32) {
                const Line a = floats(scale + c), b = floats(shift + c);
                Line sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}, product = sum;
                for (int p = 0; p < positions; p++) {
                    const size_t at = ((size_t)n * positions + p) * C + c;
                    const Line value = widen(raw(pooled + at));
                    __m512i line = raw(dy + at);
                    if (act == RELU) /* y is never negative: as an integer it is more than 0 where z is */
                        line = _mm512_maskz_mov_epi16(_mm512_cmpgt_epi16_mask(raw(y + at), _mm512_setzero_si512()), line);
                    if (act == SILU) {
                        const Line z = multiply_add(value, a, b), g = widen(line);
                        line = narrow((Line){silu_backward(g.low, z.low), silu_backward(g.high, z.high)});
                    }
                    if (act != NONE) _mm512_storeu_si512(dz + at, line);
                    sum = plus(sum, widen(line));
                    product = multiply_add(widen(line), value, product);
                }
                add_to_doubles(mine + c, sum);
                add_to_doubles(mine + C + c, product);
            }
    }
    add_up(sums, partial, 2 * C, threads);
    free(partial);
}

/* dx [N, H, W, C] from dz [N, H/pool, W/pool, C]: before the pooling it is scale * dz + slope * pooled + base
 * at the largest of each window, and 0 elsewhere. */
void backward(const bf16 *dz, const bf16 *pooled, const uint8_t *which, bf16 *dx, const float *scale,
              const float *slope, const float *base, int N, int H, int W, int C, int pool, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        for (int row = 0; row < h; row++) {
            bf16 *to = dx + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, to += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, to += 32) {
                    const Line rest =
                        multiply_add(floats(slope + c), widen(raw(pooled + at)), floats(base + c));
                    const __m512i g = narrow(multiply_add(floats(scale + c), widen(raw(dz + at)), rest));
                    if (pool == 1) {
                        _mm512_storeu_si512(to, g);
                        continue;
                    }
                    const __m256i index = _mm256_loadu_si256((const __m256i *)(which + at));
                    for (int i = 0; i < 4; i++) {
                        const __mmask32 here = _mm256_cmpeq_epi8_mask(index, _mm256_set1_epi8(i));
                        bf16 *corner = to + (size_t)(i % 2) * C + (size_t)(i / 2) * W * C;
                        _mm512_storeu_si512(corner, _mm512_maskz_mov_epi16(here, g));
                    }
                }
        }
        /* What no window covers: an odd last row and column. */
        for (int row = 0; row < H && pool * w < W; row++)
            memset(dx + (((size_t)n * H + row) * W + W - 1) * C, 0, (size_t)C * sizeof(bf16));
        if (pool * h < H) memset(dx + ((size_t)n * H + H - 1) * W * C, 0, (size_t)W * C * sizeof(bf16));
    }
}

/* ---- Augmentation ------------------------------------------------------------------------------------------ */

static inline int folded(int at, int length) { /* beyond the ends back in, the ends not repeated */
    at = at < 0 ? -at : at;
    at = at < length ? at : 2 * (length - 1) - at;
    return at < 0 ? 0 : at > length - 1 ? length - 1 : at;
}

/* uint8 [N, H, W, 3] -> the same: mirrored where flip [N] says so, then moved by shift [N, 2], pixels down and
 * right; what comes in from outside is the reflection, or 0. */
void mirror_and_translate(const uint8_t *images, uint8_t *moved, const uint8_t *flip, const int64_t *shift, int N,
                          int H, int W, int reflect, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        int from[W]; /* byte in the row that each pixel comes from; -1 is outside */
        for (int x = 0; x < W; x++) {
            const int at = x - (int)shift[2 * n + 1], inside = at >= 0 && at < W, column = folded(at, W);
            from[x] = inside || reflect ? 3 * (flip[n] ? W - 1 - column : column) : -1;
        }
        for (int y = 0; y < H; y++) {
            const int at = y - (int)shift[2 * n], inside = at >= 0 && at < H;
            const uint8_t *row = images + ((size_t)n * H + folded(at, H)) * W * 3;
            uint8_t *to = moved + ((size_t)n * H + y) * W * 3;
            for (int x = 0; x < W; x++, to += 3) {
                const int there = from[x] >= 0 && (inside || reflect);
                for (int c = 0; c < 3; c++) to[c] = there ? row[from[x] + c] : 0;
            }
        }
    }
}
