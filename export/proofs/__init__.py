"""What shows that an exported model can be served, each a process of its own; see `export/check_saved_model.py`."""
