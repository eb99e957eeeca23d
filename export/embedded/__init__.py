"""A small model server that speaks TensorFlow Serving's gRPC and REST, for laptops and tests; see `export/serve.py`."""
