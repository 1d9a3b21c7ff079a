/* Shared code for bfloat16 in AVX-512 vectors.
 *
 * All kernels follow the same rules. Pictures are bfloat16, stored [N, H, W, C] ("channels last"); statistics
 * and weight gradients are float32. Threads come from OpenMP, from the same runtime that PyTorch uses. The
 * order of every sum depends only on the number of threads, not on timing, so the same number of threads
 * gives the same bits. */
#ifndef VECTORS_H
#define VECTORS_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;

enum { MAX_CHANNELS = 4096 }; /* as in calls.py */

/* For the inner loops. gcc does not inline all of them by itself, which is up to 17 % slower (for a 256 x 256
 * weight gradient on 3x3). */
#define INLINE static inline __attribute__((always_inline))

/* A pixel outside the picture. A vector that begins at the last channel still fits. */
static const bf16 zero_pixel[MAX_CHANNELS + 16];

/* One bit for each of the 16 channels from `first` on, 1 if the channel exists. */
static inline __mmask16 channel_mask(int first, int channels) {
    const int left = channels - first;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
}

/* One bit for each of the 32 channels from `first` on, 1 if the channel exists. */
static inline __mmask32 wide_mask(int first, int channels) {
    const int left = channels - first;
    return left >= 32 ? 0xffffffff : left <= 0 ? 0 : ((__mmask32)1 << left) - 1;
}

/* Loads 16 bfloat16 values as floats. Each goes to the upper half of 32 bits. */
static inline __m512 load_bf16(__mmask16 mask, const bf16 *from) {
    const __m512i places =
        _mm512_set_epi32(15 << 16, 14 << 16, 13 << 16, 12 << 16, 11 << 16, 10 << 16, 9 << 16, 8 << 16,
                         7 << 16, 6 << 16, 5 << 16, 4 << 16, 3 << 16, 2 << 16, 1 << 16, 0);
    const __m512i values = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, values));
}

/* Where the sign bit is set, flips all other bits: bfloat16 become 16-bit integers with the same order. It is
 * its own inverse. 0x6c is the truth table of line ^ (sign & 0x7fff). */
static inline __m512i flip_negative(__m512i line) {
    return _mm512_ternarylogic_epi32(_mm512_srai_epi16(line, 15), line, _mm512_set1_epi16(0x7fff), 0x6c);
}

enum { NANS = 0x7f }; /* the number of NaNs of either sign */

/* Maps bfloat16 to 16-bit integers with the same order. NaNs are larger than all numbers, so that the maximum
 * of a window with a NaN is NaN, as in PyTorch: subtracting NANS wraps the negative ones around. */
static inline __m512i sortable(__m512i line) {
    return _mm512_sub_epi16(flip_negative(line), _mm512_set1_epi16(NANS));
}

/* The inverse of `sortable`. */
static inline __m512i unsortable(__m512i line) {
    return flip_negative(_mm512_add_epi16(line, _mm512_set1_epi16(NANS)));
}

/* Where `value` is larger than `best`, takes it, and `index` for its place. Both are sortable. */
static inline void take_larger(__m512i *best, __m512i *place, __m512i value, int index) {
    *place = _mm512_mask_mov_epi16(*place, _mm512_cmpgt_epi16_mask(value, *best), _mm512_set1_epi16(index));
    *best = _mm512_max_epi16(*best, value);
}

/* 1 / (1 + exp(-x)), with an error of 1.4e-4, which is less than the rounding error of bfloat16. */
static inline __m512 sigmoid(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(t, 0), part = _mm512_sub_ps(t, whole); /* in [-0.5, 0.5] */
    /* 2^part by a polynomial */
    __m512 power = _mm512_set1_ps(5.503e-2f);
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.42261e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.93253e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.999951f));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1), _mm512_scalef_ps(power, whole)));
}

static inline __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

/* Fetches what lies one page (4,096 bytes) after `here` into the L2 cache, whether it will be read or
 * written: a processor fetches ahead by itself, but not beyond the end of a page. An address outside is no
 * error. */
static inline void fetch_ahead(const void *here) { _mm_prefetch((const char *)here + 4096, _MM_HINT_T1); }

static inline int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

#endif
