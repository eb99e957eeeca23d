"""A learned prior on a server: every proof holds; a real blend by the command line is what it is without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from servers import Server

from tfdeblend.app.cli import main
from tfdeblend.catalog.result import Deblended
from tfdeblend.export import saved_model
from tfdeblend.export.bucket import Bucket
from tfdeblend.export.check_saved_model import check

BLEND = "43158172147386634"  # 2 sources, 22 pixels
LARGEST = {"map": 1e-5, "sample": 1e-3}


def relative(here: Deblended, there: Deblended) -> float:
    """Largest difference of the sources over their largest pixel."""
    return np.abs(there.sources - here.sources).max() / here.sources.max()


def deviations(here: Deblended, there: Deblended) -> float:
    """Largest difference of the sources' means over the deviation of their samples."""
    assert here.sources_std is not None
    return (np.abs(there.sources - here.sources) / np.maximum(here.sources_std, 1e-6)).max()


@pytest.mark.slow
def test_a_real_blend_through_a_server_is_that_without_one(data: Path, tmp_path: Path):
    assert check(saved_model.write(Bucket("hsc-grizy-64", 32), tmp_path / "models"))
    server = Server(tmp_path / "models")
    try:
        for method, apart in (("map", relative), ("sample", deviations)):
            command = ["deblend", str(data / "hsc_blends" / f"{BLEND}.npz"), "--prior", "hsc-grizy-64", "--assume-ab"]
            command += ["--method", method, "--no-figures"]
            places = [tmp_path / f"{method}-{where}" for where in ("here", "there")]
            for place, options in zip(places, ([], ["--server", f"grpc://{server.grpc}"]), strict=True):
                assert main([*command, "--no-report", *options, "--out", str(place)]) == 0
            here, there = (Deblended.read(place / f"{BLEND}.fits") for place in places)
            assert apart(here, there) <= LARGEST[method]
    finally:
        assert server.stop() == 0
