/* Scratch memory for the kernels.
 *
 * Every kernel allocates all its memory before its first parallel region. A thread that failed to allocate
 * within one would leave the others waiting at the next barrier. When the system refuses, the kernel returns
 * NO_MEMORY before it has written any result, and calls.py raises MemoryError. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdlib.h>

enum { DONE, NO_MEMORY }; /* what every kernel returns */

/* Aligned to a cache line, not cleared; NULL if the system refuses. */
static inline void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

#endif
