/* AMX tile instructions in plain C, so that tests can run tile_conv.c and tile_gradient.c on processors
 * without AMX. Tests compile the kernels with `gcc -include` and this file, and compare their sums with
 * PyTorch's. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_loadconfig
#define _tile_storeconfig emulated_storeconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_dpbf16ps emulated_dpbf16ps

static _Thread_local struct {
    uint8_t config[64];
    uint32_t tiles[8][16][16];
} emulated;

static inline void emulated_loadconfig(const void *config) { memcpy(emulated.config, config, 64); }
static inline void emulated_storeconfig(void *config) { memcpy(config, emulated.config, 64); }
static inline void emulated_release(void) { memset(&emulated, 0, sizeof emulated); }

static inline void emulated_zero(int tile) { memset(emulated.tiles[tile], 0, sizeof emulated.tiles[tile]); }

static inline void emulated_loadd(int tile, const void *from, long stride) {
    for (int row = 0; row < 16; row++)
        memcpy(emulated.tiles[tile][row], (const char *)from + row * stride, 64);
}

static inline void emulated_stored(int tile, void *to, long stride) {
    for (int row = 0; row < 16; row++) memcpy((char *)to + row * stride, emulated.tiles[tile][row], 64);
}

static inline float emulated_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Like the instruction, sums even and odd products separately, then adds both sums to the destination. */
static inline void emulated_dpbf16ps(int to, int a, int b) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            float even = 0, odd = 0;
            for (int k = 0; k < 16; k++) {
                const uint32_t x = emulated.tiles[a][row][k], y = emulated.tiles[b][k][column];
                even += emulated_float(x << 16) * emulated_float(y << 16);
                odd += emulated_float(x & 0xffff0000) * emulated_float(y & 0xffff0000);
            }
            const float sum = emulated_float(emulated.tiles[to][row][column]) + (even + odd);
            memcpy(&emulated.tiles[to][row][column], &sum, 4);
        }
}
