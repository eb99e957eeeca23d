"""Results: what they hold, how they are built, measured, flagged, written and read."""
