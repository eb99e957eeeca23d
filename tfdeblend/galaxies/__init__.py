"""Closed-form galaxies: profiles, priors and the posterior of a batch."""
