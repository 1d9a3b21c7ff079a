/* What the convolutions by Winograd's algorithm share: winograd.c with stride 1, strided.c with stride 2.
 *
 * Both transform three weights per side into six points, so a filter becomes 36 matrices [inputs, outputs].
 *
 * The vector instruction multiplies and adds two neighbouring values of the summed index at a time, so such
 * values are stored in pairs. */
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "vectors.h"

enum { POINTS = 36, ROWS = 8 }; /* points per tile; rows of a matrix product at a time */
enum { MOST_SUMS = 8 << 20 };   /* bytes per thread of the weight gradient's sums at most */

#define NOT_INLINE static __attribute__((noinline)) /* compiled once instead of into every caller */

/* A transform along one side: reads every `from`th vector of d and writes every `to`th of t. */
typedef void Line(const __m512 *d, int from, __m512 *t, int to);

static inline __m512 times(__m512 a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }

static inline __m512 plus_times(__m512 a, __m512 b, float c) {
    return _mm512_fmadd_ps(b, _mm512_set1_ps(c), a);
}

/* Rounds two vectors of 16 floats to bfloat16, and interleaves them: a[0], b[0], a[1], b[1], ... */
static inline __m512i side_by_side(__m512 a, __m512 b) {
    const __m512i places =
        _mm512_set_epi32(31 << 16 | 15, 30 << 16 | 14, 29 << 16 | 13, 28 << 16 | 12, 27 << 16 | 11,
                         26 << 16 | 10, 25 << 16 | 9, 24 << 16 | 8, 23 << 16 | 7, 22 << 16 | 6, 21 << 16 | 5,
                         20 << 16 | 4, 19 << 16 | 3, 18 << 16 | 2, 17 << 16 | 1, 16 << 16);
    return _mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* Multiplies a by b, and writes the product to sums [ROWS][32], or adds it if `add` is set. The rows of sums
 * are `row` floats apart. a[r * down + k * along] holds two neighbouring values in 32 bits; b0 and b1 hold
 * pairs of neighbours for 16 outputs each. */
static inline void multiply(float *sums, size_t row, const int32_t *a, size_t down, size_t along,
                            const bf16 *b0, const bf16 *b1, int pairs, int add) {
    __m512 left[ROWS], right[ROWS];
    for (int r = 0; r < ROWS; r++) {
        left[r] = add ? _mm512_load_ps(sums + r * row) : _mm512_setzero_ps();
        right[r] = add ? _mm512_load_ps(sums + r * row + 16) : _mm512_setzero_ps();
    }
    for (int k = 0; k < pairs; k++) {
        const __m512bh x0 = (__m512bh)_mm512_load_si512(b0 + 32 * k),
                       x1 = (__m512bh)_mm512_load_si512(b1 + 32 * k);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const __m512bh y = (__m512bh)_mm512_set1_epi32(a[r * down + k * along]);
            left[r] = _mm512_dpbf16_ps(left[r], y, x0);
            right[r] = _mm512_dpbf16_ps(right[r], y, x1);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        _mm512_store_ps(sums + r * row, left[r]);
        _mm512_store_ps(sums + r * row + 16, right[r]);
    }
}

/* Transforms inputs 2 `pair` and 2 `pair` + 1 of 16 outputs, block number b, from w [inputs, 3, 3, outputs]
 * into u [36, outputs / 16, inputs / 2, 16, 2], padded with zeros. `flip` rotates the filters by 180 degrees.
 */
INLINE void transform_weights_of(Line *weight_points, const float *w, bf16 *u, int inputs, int outputs, int b,
                                 int pair, int flip) {
    const int pairs = rounded_up(inputs, 16) / 2, blocks = rounded_up(outputs, 32) / 16;
    __m512 points[2][36];
    for (int s = 0; s < 2; s++) {
        const int input = 2 * pair + s;
        const __mmask16 mask = input < inputs ? channel_mask(16 * b, outputs) : 0;
        __m512 taps[9], half[18];
        for (int tap = 0; tap < 9; tap++)
            taps[tap] = _mm512_maskz_loadu_ps(
                mask, w + ((size_t)input * 9 + (flip ? 8 - tap : tap)) * outputs + 16 * b);
        for (int j = 0; j < 3; j++) weight_points(taps + j, 3, half + j, 3);
        for (int i = 0; i < 6; i++) weight_points(half + 3 * i, 1, points[s] + 6 * i, 1);
    }
    for (int p = 0; p < POINTS; p++)
        _mm512_store_si512(u + (((size_t)p * blocks + b) * pairs + pair) * 32,
                           side_by_side(points[0][p], points[1][p]));
}

/* How threads divide the sums of a weight gradient. Each thread has sums [36][inputs / 32][mine][32]. */
typedef struct {
    int CI, inputs, outputs;  /* input channels; rounded up; output channels, rounded up */
    int shares, groups, mine; /* parts of the outputs, of the pictures; outputs per thread */
    size_t point;             /* sums per point */
} Division;

static inline Division divide(int CI, int CO, int threads) {
    Division d = {.CI = CI, .inputs = rounded_up(CI, 32), .outputs = rounded_up(CO, 16), .shares = 1};
    while (threads % (2 * d.shares) == 0 && d.outputs % (32 * d.shares) == 0 &&
           4L * POINTS * d.inputs * d.outputs / d.shares > MOST_SUMS)
        d.shares *= 2;
    d.groups = threads / d.shares;
    d.mine = d.outputs / d.shares;
    d.point = (size_t)d.mine * d.inputs;
    return d;
}

/* Adds up all threads' sums for output channel o, and transforms them back into dw [CO, 3, 3, CI]. */
INLINE void finish_gradient(Line *weight_gradients, const Division *d, const float *sums, int o, float *dw) {
    const int CI = d->CI, mine = d->mine;
    const size_t point = d->point;
    for (int i = 0; i < CI; i += 16) {
        const __mmask16 mask = channel_mask(i, CI);
        const float *sum =
            sums + POINTS * point * (o / mine) + (size_t)(i / 32) * 32 * mine + 32 * (o % mine) + i % 32;
        __m512 points[36], half[18], taps[9];
        for (int p = 0; p < POINTS; p++) {
            points[p] = _mm512_load_ps(sum + p * point);
            for (int n = 1; n < d->groups; n++)
                points[p] = _mm512_add_ps(points[p],
                                          _mm512_load_ps(sum + p * point + POINTS * point * d->shares * n));
        }
        for (int j = 0; j < 6; j++) weight_gradients(points + j, 6, half + j, 6);
        for (int k = 0; k < 3; k++) weight_gradients(half + 6 * k, 1, taps + 3 * k, 1);
        for (int tap = 0; tap < 9; tap++)
            _mm512_mask_storeu_ps(dw + ((size_t)o * 9 + tap) * CI + i, mask, taps[tap]);
    }
}

#endif
