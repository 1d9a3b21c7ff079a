"""Kernels in C for operations that PyTorch runs slowly on CPUs with bfloat16 instructions.

Each kernel has a reference implementation in PyTorch. It defines the result, and runs if the kernel cannot.
"""
