"""Linear algebra on batches of images: operators with their adjoints, covariances and solvers."""
