/* Lets tests refuse the kernels' allocations: gcc -include this file. */
#include <stdlib.h>

/* How many allocations to grant before all are refused; one variable for the whole library. */
__attribute__((weak)) int allocations_granted = 1 << 30;

static inline void *refusing_alloc(size_t alignment, size_t bytes) {
    return allocations_granted-- > 0 ? aligned_alloc(alignment, bytes) : NULL;
}

#define aligned_alloc refusing_alloc
