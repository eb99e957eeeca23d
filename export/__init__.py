"""Export of models for a model server, and a small server of them."""
