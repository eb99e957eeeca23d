"""Packages build on each other in one direction, and the light ones stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tfdeblend

ROOT = Path(__file__).parents[1]


def test_packages_import_only_from_those_below_them():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("code", ["import tfdeblend", "import tfdeblend.app.cli as c; c.build_parser().format_help()"])
def test_light_to_start(code: str):
    heavy = "{'tensorflow', 'keras', 'astropy', 'matplotlib', 'sep', 'galsim', 'numpy'}"
    check = f"import sys; {code}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_result_types_need_no_tensorflow():
    light = "import tfdeblend, tfdeblend.app.runs, tfdeblend.plots, tfdeblend.plots.bitmap; tfdeblend.Deblended"
    parts = ("builder", "files", "measure", "result", "statistics")
    light += "".join(f"; import tfdeblend.catalog.{part}" for part in parts)
    check = f"import sys; {light}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tensorflow_starts_in_silence():
    check = "from tfdeblend.startup import start_tensorflow; import sys; start_tensorflow()"
    check += "; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_public_names_are_complete():
    assert dir(tfdeblend) == sorted(tfdeblend.__all__)
    assert all(getattr(tfdeblend, name) is not None for name in tfdeblend.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tfdeblend.nonsense
