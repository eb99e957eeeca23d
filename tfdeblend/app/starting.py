"""TensorFlow's start, of which a command shows nothing unless asked to."""

from __future__ import annotations

import os
import sys
import tempfile


def start_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow without what its libraries write on standard error: which CPU and drivers they found.

    No setting of TensorFlow's keeps these lines back. They are shown where the import raises an error, or if `verbose`;
    where the process is aborted, only then.
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
