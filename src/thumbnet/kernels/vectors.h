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

static inline int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

#endif
