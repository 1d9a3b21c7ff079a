/* The one-dimensional transforms for stride 2 on single floats, for tests. */
#include "strided.c"

/* Transforms up to nine floats into nine floats. Results that the transform does not write are 0. `size` is
 * not used. */
void transform(int which, int size, const float *from, float *to) {
    __m512 in[9], out[9];
    for (int i = 0; i < 9; i++) {
        in[i] = _mm512_set1_ps(from[i]);
        out[i] = _mm512_setzero_ps();
    }
    switch (which) { /* no table: these functions are always inlined */
    case 0: input_values(in, 1, out, 1); break;
    case 1: results(in, 1, out, 1); break;
    case 2: gradient_values(in, 1, out, 1); break;
    case 3: input_gradients(in, 1, out, 1); break;
    case 4: result_values(in, 1, out, 1); break;
    case 5: weight_points(in, 1, out, 1); break;
    case 6: weight_gradients(in, 1, out, 1); break;
    }
    for (int i = 0; i < 9; i++) to[i] = _mm512_cvtss_f32(out[i]);
}
