"""Compiled fits and samplers, one for each shape of a batch."""
