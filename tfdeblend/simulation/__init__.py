"""Simulated galaxies and blends with truth, drawn with GalSim."""
