"""Learned priors: denoisers, noise levels and the steps of the reverse diffusion."""
