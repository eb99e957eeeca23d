"""TensorFlow is started without what its libraries write on standard error: which CPU and drivers they found."""

from __future__ import annotations

import logging
import os
import sys
import tempfile


def silence_tensorflow() -> None:
    """Keep the messages of TensorFlow's own logs back that are no errors, in this process and those it starts."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def start_tensorflow(verbose: bool = False) -> None:
    """Import TensorFlow without the lines that no setting of its own keeps back.

    They are shown where the import raises an error, or if `verbose`; where the process is aborted, only then.
    """
    if verbose or sys.stderr is None or "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            lines.seek(0)
            os.write(terminal, lines.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
