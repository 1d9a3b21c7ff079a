/* Muon's passes over memory. PyTorch's operations need twice as many. A filter bank is a matrix with one row
 * per output channel. */
#include "memory.h"
#include "vectors.h"

#include <omp.h>

enum { LINE = 16 }; /* values at a time: a cache line of floats */

static inline __m512 load_floats(__mmask16 mask, const float *from) {
    fetch_ahead(from);
    return _mm512_maskz_loadu_ps(mask, from);
}

/* The C library's sqrt is in libm, with which the kernels are not linked. */
static inline double square_root(double value) {
    return _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(value)));
}

/* Adds the gradient to the momentum, and looks ahead (Nesterov): buffer = momentum * buffer + gradient, and
 * update = gradient + momentum * buffer, rounded. All are [count]. Returns DONE. */
int muon_momentum(const float *gradient, float *buffer, bf16 *update, int count, float momentum,
                  int threads) {
    const __m512 factor = _mm512_set1_ps(momentum);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int at = 0; at < count; at += LINE) {
        const __mmask16 mask = channel_mask(at, count);
        const __m512 g = load_floats(mask, gradient + at);
        const __m512 sum = _mm512_fmadd_ps(factor, load_floats(mask, buffer + at), g);
        _mm512_mask_storeu_ps(buffer + at, mask, sum);
        fetch_ahead(update + at);
        _mm256_mask_storeu_epi16(update + at, mask,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(factor, sum, g)));
    }
    return DONE;
}

/* Rescales filters [rows, columns] to the norm sqrt(rows), and subtracts lr * step. `squares` [rows] becomes
 * the sum of squares of each row, so that the order of the sum does not depend on the threads. Returns DONE.
 */
int muon_step(float *filters, const bf16 *step, double *squares, int rows, int columns, float lr,
              int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int row = 0; row < rows; row++) {
            const float *from = filters + (size_t)row * columns;
            __m512 sum = _mm512_setzero_ps();
            for (int at = 0; at < columns; at += LINE) {
                const __m512 value = load_floats(channel_mask(at, columns), from + at);
                sum = _mm512_fmadd_ps(value, value, sum);
            }
            squares[row] = _mm512_reduce_add_ps(sum);
        }
        double total = 0;
        for (int row = 0; row < rows; row++) total += squares[row];
        if (total < 1e-24) total = 1e-24; /* NaN stays NaN */
        const __m512 scale = _mm512_set1_ps(square_root(rows / total)), rate = _mm512_set1_ps(lr);
#pragma omp for schedule(static)
        for (int row = 0; row < rows; row++) {
            float *to = filters + (size_t)row * columns;
            const bf16 *with = step + (size_t)row * columns;
            for (int at = 0; at < columns; at += LINE) {
                const __mmask16 mask = channel_mask(at, columns);
                const __m512 scaled = _mm512_mul_ps(scale, load_floats(mask, to + at));
                fetch_ahead(with + at);
                const __m512 moved = _mm512_fnmadd_ps(rate, load_bf16(mask, with + at), scaled);
                _mm512_mask_storeu_ps(to + at, mask, moved);
            }
        }
    }
    return DONE;
}
