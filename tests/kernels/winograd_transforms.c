/* Winograd's one-dimensional transforms on single floats, for tests. */
#include "winograd.c"

enum { INPUT_POINTS, RESULTS_OF_POINTS, RESULT_POINTS, WEIGHT_POINTS, WEIGHT_GRADIENTS };

/* Transforms up to six floats into six floats. Results that the transform does not write are 0. */
void transform(int which, int size, const float *from, float *to) {
    __m512 in[6], out[6];
    for (int i = 0; i < 6; i++) {
        in[i] = _mm512_set1_ps(from[i]);
        out[i] = _mm512_setzero_ps();
    }
    if (which == INPUT_POINTS) input_points(size, in, 1, out, 1);
    if (which == RESULTS_OF_POINTS) results(size, in, 1, out, 1);
    if (which == RESULT_POINTS) result_points(size, in, 1, out, 1);
    if (which == WEIGHT_POINTS) weight_points(in, 1, out, 1);
    if (which == WEIGHT_GRADIENTS) weight_gradients(in, 1, out, 1);
    for (int i = 0; i < 6; i++) to[i] = _mm512_cvtss_f32(out[i]);
}
