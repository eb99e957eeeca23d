"""The forward model y = A x + n of a batch of blends."""
