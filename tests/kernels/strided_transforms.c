/* The one-dimensional transforms for stride 2 on single floats, for tests. */
#include "strided.c"

/* Transforms up to nine floats into nine floats. Results that the transform does not write are 0. `size` is
 * not used. */
void transform(int which, int size, const float *from, float *to) {
    Line *const lines[] = {input_values,  results,       gradient_values, input_gradients,
                           result_values, weight_points, weight_gradients};
    __m512 in[9], out[9];
    for (int i = 0; i < 9; i++) {
        in[i] = _mm512_set1_ps(from[i]);
        out[i] = _mm512_setzero_ps();
    }
    lines[which](in, 1, out, 1);
    for (int i = 0; i < 9; i++) to[i] = _mm512_cvtss_f32(out[i]);
}
