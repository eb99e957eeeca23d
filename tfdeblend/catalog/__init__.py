"""Results: models, measurements and the flags of a catalogue."""
