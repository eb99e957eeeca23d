"""A learned prior on a server: a real blend through the command line is what it is without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import saved_model
from export.bucket import Bucket
from tests.scene_files import DATA, needs_data
from tests.test_serving import Server
from tfdeblend.cli import main
from tfdeblend.io.results import read_fits

BLEND = DATA / "hsc_blends" / "43158172147386634.npz"  # 2 sources, 22 pixels


@pytest.mark.slow
@needs_data
def test_a_real_blend_through_a_server_is_that_without_one(tmp_path: Path):
    saved_model.write(Bucket("hsc-grizy-64", 32), tmp_path / "models")
    server = Server(tmp_path / "models")
    try:
        for method in ("map", "sample"):
            command = [
                "deblend",
                str(BLEND),
                "--prior",
                "hsc-grizy-64",
                "--method",
                method,
                "--no-figures",
                "--no-report",
            ]
            assert main([*command, "--out", str(tmp_path / "here")]) == 0
            assert main([*command, "--out", str(tmp_path / "there"), "--server", f"grpc://{server.grpc}"]) == 0
            here, there = (read_fits(tmp_path / out / f"{BLEND.stem}.fits") for out in ("here", "there"))
            apart = np.abs(there.sources - here.sources)
            print(method, apart.max() / here.sources.max())
            for band in "grizy":
                a, b = here.catalog[f"flux_{band}"], there.catalog[f"flux_{band}"]
                print(band, np.abs(a - b) / here.catalog[f"flux_err_{band}"])
            if method == "sample":
                print((apart / here.sources_std).max())
    finally:
        assert server.stop() == 0
