/* Max-pooling, batch normalisation, addition and activation in one pass over memory. PyTorch needs three to
 * five passes.
 *
 * Normalisation scales and shifts each channel: y = act(scale[c] * pool(x)[c] + shift[c] + add). The kernels
 * work on one cache line of channels at a time, so C must be a multiple of 32: norm.py takes several
 * positions of fewer channels as one of 32. */
#include "memory.h"
#include "vectors.h"

#include <omp.h>
#include <string.h>

enum { NONE, RELU, SILU };

/* 32 channels: a cache line of bfloat16. */
typedef struct {
    __m512 low, high;
} Line;

static inline __m512i raw(const bf16 *from) { return _mm512_loadu_si512(from); }

static inline Line widen(__m512i line) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(line));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1));
    return (Line){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)),
                  _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}

static inline __m512i narrow(Line line) { return (__m512i)_mm512_cvtne2ps_pbh(line.high, line.low); }

static inline Line floats(const float *from) {
    return (Line){_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)};
}

static inline Line multiply_add(Line a, Line b, Line c) {
    return (Line){_mm512_fmadd_ps(a.low, b.low, c.low), _mm512_fmadd_ps(a.high, b.high, c.high)};
}

static inline Line plus(Line a, Line b) {
    return (Line){_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}

static inline __m512 activate(__m512 z, int act) {
    if (act == RELU) return _mm512_max_ps(_mm512_setzero_ps(), z); /* NaN stays NaN: the second operand */
    if (act == SILU) return silu(z);
    return z;
}

/* dy times the derivative of SiLU at z. */
static inline __m512 silu_backward(__m512 dy, __m512 z) {
    const __m512 s = sigmoid(z), one = _mm512_set1_ps(1);
    return _mm512_mul_ps(dy, _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one)));
}

/* The maximum of a 2x2 window. `which` becomes its position, 0 to 3 in reading order, the first if equal. */
static inline __m512i largest(const bf16 *corner, size_t right, size_t down, __m512i *which) {
    __m512i best = sortable(raw(corner)), index = _mm512_setzero_si512();
    const size_t others[3] = {right, down, down + right};
    for (int i = 0; i < 3; i++) take_larger(&best, &index, sortable(raw(corner + others[i])), i + 1);
    *which = index;
    return unsortable(best);
}

static inline void add_to_doubles(double *to, Line value) {
    float lanes[32];
    _mm512_storeu_ps(lanes, value.low);
    _mm512_storeu_ps(lanes + 16, value.high);
    for (int i = 0; i < 32; i++) to[i] += lanes[i];
}

/* `count` sums per thread, all 0; NULL if there is not enough memory. */
static double *partial_sums(int count, int threads) {
    const size_t bytes = sizeof(double) * count * threads;
    double *partial = allocate(bytes);
    if (partial) memset(partial, 0, bytes);
    return partial;
}

static void add_up(double *sums, const double *partial, int count, int threads) {
    for (int i = 0; i < count; i++) {
        sums[i] = 0;
        for (int t = 0; t < threads; t++) sums[i] += partial[(size_t)t * count + i];
    }
}

/* If pool is 2, writes the maxima of the 2x2 windows of x [N, H, W, C] to `pooled` [N, H/2, W/2, C], and
 * their positions in the windows to `which`, of the same shape. If pool is 1, writes neither. sums [2, C]
 * become the sums of the pooled values and of their squares. Returns DONE or NO_MEMORY. */
int pool_and_sum(const bf16 *x, bf16 *pooled, uint8_t *which, double *sums, int N, int H, int W, int C,
                 int pool, int threads) {
    const int h = H / pool, w = W / pool;
    double *partial = partial_sums(2 * C, threads);
    if (!partial) return NO_MEMORY;
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
                        } else {
                            /* The other channels of this place will be read when they come next. */
                            for (int other = 0; c == 0 && other < C; other += 32) fetch_ahead(from + other);
                            line = raw(from);
                        }
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
    return DONE;
}

/* y = act(scale * pool(x) + shift + add): x [N, H, W, C]; y and add (or NULL) [N, H/pool, W/pool, C].
 * Returns DONE. */
int scale_and_activate(const bf16 *x, const bf16 *add, bf16 *y, const float *scale, const float *shift, int N,
                       int H, int W, int C, int pool, int act, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++)
        for (int row = 0; row < h; row++) {
            const bf16 *from = x + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, from += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, from += 32) {
                    fetch_ahead(from);
                    fetch_ahead(y + at);
                    if (add) fetch_ahead(add + at);
                    __m512i index;
                    const __m512i line = pool == 2 ? largest(from, C, (size_t)W * C, &index) : raw(from);
                    Line z = multiply_add(widen(line), floats(scale + c), floats(shift + c));
                    if (add) z = plus(z, widen(raw(add + at)));
                    _mm512_storeu_si512(y + at, narrow((Line){activate(z.low, act), activate(z.high, act)}));
                }
        }
    return DONE;
}

/* Computes dz, the gradient before the activation, from dy, the gradient after it. dz, dy, pooled and y all
 * have the shape [N, positions, C]. ReLU's derivative comes from its result y, SiLU's from its argument. For
 * NONE, dz equals dy and is not written. sums [2, C] become the sums of dz and of dz * pooled. Returns DONE
 * or NO_MEMORY. */
int backward_sums(const bf16 *dy, const bf16 *pooled, const bf16 *y, bf16 *dz, const float *scale,
                  const float *shift, double *sums, int N, int positions, int C, int act, int threads) {
    double *partial = partial_sums(2 * C, threads);
    if (!partial) return NO_MEMORY;
#pragma omp parallel num_threads(threads)
    {
        double *mine = partial + (size_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int n = 0; n < N; n++) {
            float total[2 * MAX_CHANNELS];
            memset(total, 0, sizeof(float) * 2 * C);
            for (int p = 0; p < positions; p++)
                for (int c = 0; c < C; c += 32) {
                    const size_t at = ((size_t)n * positions + p) * C + c;
                    fetch_ahead(dy + at);
                    fetch_ahead(pooled + at);
                    if (act == RELU) fetch_ahead(y + at);
                    if (act != NONE) fetch_ahead(dz + at);
                    const Line value = widen(raw(pooled + at));
                    __m512i line = raw(dy + at);
                    if (act == RELU) /* the bits of y are > 0 where z > 0, and not for 0 and -0 */
                        line = _mm512_maskz_mov_epi16(
                            _mm512_cmpgt_epi16_mask(raw(y + at), _mm512_setzero_si512()), line);
                    if (act == SILU) {
                        const Line z = multiply_add(value, floats(scale + c), floats(shift + c)),
                                   g = widen(line);
                        line = narrow((Line){silu_backward(g.low, z.low), silu_backward(g.high, z.high)});
                    }
                    if (act != NONE) _mm512_storeu_si512(dz + at, line);
                    const Line sum = plus(floats(total + c), widen(line));
                    const Line product = multiply_add(widen(line), value, floats(total + C + c));
                    _mm512_storeu_ps(total + c, sum.low);
                    _mm512_storeu_ps(total + c + 16, sum.high);
                    _mm512_storeu_ps(total + C + c, product.low);
                    _mm512_storeu_ps(total + C + c + 16, product.high);
                }
            for (int c = 0; c < 2 * C; c++) mine[c] += total[c];
        }
    }
    add_up(sums, partial, 2 * C, threads);
    free(partial);
    return DONE;
}

/* Computes dx [N, H, W, C] from dz [N, H/pool, W/pool, C]: scale * dz + slope * pooled + base at the maximum
 * of each window, and 0 elsewhere. With pool 1, dx may be dz. Returns DONE. */
int backward(const bf16 *dz, const bf16 *pooled, const uint8_t *which, bf16 *dx, const float *scale,
             const float *slope, const float *base, int N, int H, int W, int C, int pool, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        for (int row = 0; row < h; row++) {
            bf16 *to = dx + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, to += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, to += 32) {
                    fetch_ahead(dz + at);
                    fetch_ahead(pooled + at);
                    fetch_ahead(to);
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
        /* An odd last row or column is in no window. */
        for (int row = 0; row < H && pool * w < W; row++)
            memset(dx + (((size_t)n * H + row) * W + W - 1) * C, 0, (size_t)C * sizeof(bf16));
        if (pool * h < H) memset(dx + ((size_t)n * H + H - 1) * W * C, 0, (size_t)W * C * sizeof(bf16));
    }
    return DONE;
}
