"""Operations that PyTorch does slowly on a CPU with matrix tiles, each with a plain twin in PyTorch."""
