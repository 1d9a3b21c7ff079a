/* FastNet's first layer: 2x2 patches times fixed filters, then SiLU, in one pass over memory. PyTorch needs
 * three, and its convolution is made for more than 3 channels. */
#include "memory.h"
#include "vectors.h"

#include <omp.h>
#include <string.h>

enum { MAX_INPUTS = 4, MAX_OUTPUTS = 32 }; /* as in whiten.py */

/* The filters [output][row][column][C] as pairs of neighbours in a row of the patch, for 32 outputs. */
static void pack_filters(const bf16 *filters, uint32_t *packed, int C, int outputs) {
    memset(packed, 0, sizeof(uint32_t) * 2 * C * MAX_OUTPUTS);
    for (int o = 0; o < outputs; o++)
        for (int pair = 0; pair < 2 * C; pair++)
            memcpy(packed + pair * MAX_OUTPUTS + o, filters + o * 4 * C + 2 * pair, sizeof(uint32_t));
}

/* Rounds a row of a picture to bfloat16. */
static inline void round_row(const float *from, bf16 *to, int count) {
    for (int i = 0; i < count; i += 16) {
        const __mmask16 mask = channel_mask(i, count);
        const __m512 values = _mm512_maskz_loadu_ps(mask, from + i);
        _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(values));
    }
}

/* Adds the products of one row of a patch, C pairs, with their filters to 32 sums. */
static inline void multiply_row(const bf16 *patch, const uint32_t *packed, int C, __m512 sums[2]) {
    for (int pair = 0; pair < C; pair++, packed += MAX_OUTPUTS) {
        int values;
        memcpy(&values, patch + 2 * pair, sizeof values);
        const __m512bh both = (__m512bh)_mm512_set1_epi32(values);
        sums[0] = _mm512_dpbf16_ps(sums[0], both, (__m512bh)_mm512_loadu_si512(packed));
        sums[1] = _mm512_dpbf16_ps(sums[1], both, (__m512bh)_mm512_loadu_si512(packed + 16));
    }
}

/* y = silu(filters * x + bias): x float32 [N, H, W, C], filters [outputs, 2, 2, C], bias float32
 * [outputs], y [N, H - 1, W - 1, outputs]. W * C must not exceed MAX_CHANNELS. Returns DONE. */
int whiten_and_activate(const float *x, const bf16 *filters, const float *bias, bf16 *y, int N, int H, int W,
                        int C, int outputs, int threads) {
    uint32_t packed[2 * MAX_INPUTS * MAX_OUTPUTS];
    pack_filters(filters, packed, C, outputs);
    const __mmask32 mask = wide_mask(0, outputs);
    const __m512 bias0 = _mm512_maskz_loadu_ps(channel_mask(0, outputs), bias);
    const __m512 bias1 = _mm512_maskz_loadu_ps(channel_mask(16, outputs), bias + 16);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        bf16 rows[2][MAX_CHANNELS]; /* an even row and an odd one */
        const float *from = x + (size_t)n * H * W * C;
        bf16 *to = y + (size_t)n * (H - 1) * (W - 1) * outputs;
        round_row(from, rows[0], W * C);
        for (int row = 0; row < H - 1; row++) {
            round_row(from + (size_t)(row + 1) * W * C, rows[(row + 1) % 2], W * C);
            const bf16 *above = rows[row % 2], *below = rows[(row + 1) % 2];
            for (int column = 0; column < W - 1; column++, to += outputs) {
                __m512 sums[2] = {bias0, bias1};
                fetch_ahead(to);
                multiply_row(above + column * C, packed, C, sums);
                multiply_row(below + column * C, packed + C * MAX_OUTPUTS, C, sums);
                _mm512_mask_storeu_epi16(to, mask,
                                         (__m512i)_mm512_cvtne2ps_pbh(silu(sums[1]), silu(sums[0])));
            }
        }
    }
    return DONE;
}
