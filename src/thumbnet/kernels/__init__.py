"""Operations that PyTorch runs slowly on a CPU that multiplies bfloat16, as kernels in C.

Each has a plain twin in PyTorch, which says what it computes and runs wherever the kernels cannot.
"""
