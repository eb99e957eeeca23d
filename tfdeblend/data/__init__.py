"""Observations and scenes: what is given, validated on the way in."""
