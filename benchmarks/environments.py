"""The peers' own environments, as their pins clash with ours: `python -m benchmarks.environments --into DIR`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = {
    "btk": ["blending-toolkit==1.0.9", "numpy>=2,<2.4"],
    "scarlet2": ["scarlet2==0.5.1", "numpy<2.4"],
    "torch": ["torch==2.13.0", "numpy>=2"],
    "azula": ["azula==0.11.1", "torch==2.13.0", "numpy>=2"],
}
CHECK = {"btk": "import btk", "scarlet2": "import scarlet2", "torch": "import torch", "azula": "import azula.guidance"}


def create(name: str, folder: Path) -> Path:
    """The Python of the environment of peer `name`, `folder/name/bin/python`, made and checked when not there yet.

    Raises RuntimeError, with pip's last line, when the peer cannot be installed.
    """
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"
    if done.exists():
        return python
    _run([sys.executable, "-m", "venv", str(folder / name)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]], name)
    _run([str(python), "-c", CHECK[name]], name)
    done.touch()
    return python


def _run(command: list[str], name: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(f"{name} cannot be installed: {lines[-1] if lines else 'no message'}")


def main() -> None:
    """Make the environments that are asked for; a peer that cannot be installed is said so, and the exit code is 1."""
    parser = argparse.ArgumentParser(description="Create the environments of the benchmark's peers.")
    parser.add_argument("--into", type=Path, required=True, help="folder that will hold one environment a peer")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(REQUIREMENTS)} (default all)")
    args = parser.parse_args()
    if unknown := set(args.peers) - set(REQUIREMENTS):
        parser.error(f"expected peers of {', '.join(REQUIREMENTS)}, received {', '.join(sorted(unknown))}")
    failed = False
    for name in args.peers or REQUIREMENTS:
        try:
            print(f"{name}: {create(name, args.into)}")
        except RuntimeError as error:
            failed = True
            print(error, file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
