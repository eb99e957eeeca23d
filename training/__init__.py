"""Training of learned priors: on images of galaxies, or on blends alone."""
