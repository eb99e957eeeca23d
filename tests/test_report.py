"""The page over all scenes."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from helpers import make_deblended, make_joint
from PIL import Image

from tfdeblend.app import report


def page_data(folder):
    page = (folder / "index.html").read_text()
    return json.loads(page.split('type="application/json">')[1].split("</script>")[0])["scenes"]


@pytest.mark.parametrize("deblended", [make_deblended(samples=3), make_joint(samples=3)], ids=["one", "two"])
def test_an_entry_is_the_same_from_memory_and_from_the_file(deblended, tmp_path):
    deblended.write(tmp_path / "blend.fits")
    made, read = report.Entry.of(deblended), report.Entry.read(tmp_path / "blend.fits")
    assert made.strips == read.strips
    assert made.undeclared == read.undeclared == sum(len(view.undeclared) for view in deblended.views)
    assert made.document(None)["observations"] == [
        {"name": one.name, "bands": one.bands} for one in deblended.scene.observations
    ]
    assert read.name == "blend" and read.header["chi2"] == made.header["chi2"]
    assert made.document(None)["rows"] == read.document(None)["rows"]


def test_strips_show_the_samples(tmp_path):
    samples = make_deblended(samples=60).samples
    strips = report.sample_strips(samples)
    assert len(strips) == report.STRIPS and len(set(strips)) == report.STRIPS
    picture = Image.open(io.BytesIO(base64.b64decode(strips[0].split(",")[1])))
    assert picture.width > 2.9 * picture.height  # three sources side by side


def test_pictures_are_embedded_only_while_the_page_stays_small(tmp_path, monkeypatch):
    deblended = make_deblended()
    deblended.plot(tmp_path / "blend.png")
    report.write_report(tmp_path, [report.Entry.of(deblended)], "one")
    embedded = page_data(tmp_path)[0]["figure"]
    assert base64.b64decode(embedded.split(",")[1]) == (tmp_path / "blend.png").read_bytes()
    monkeypatch.setattr(report, "EMBED_LIMIT", 1000)
    report.write_report(tmp_path, [report.Entry.of(deblended)], "one")
    assert page_data(tmp_path)[0]["figure"] == "blend.png"


def test_masked_and_undefined_values_become_null(tmp_path):
    deblended = make_deblended()
    deblended.catalog["flux_g"][0] = np.nan
    report.write_report(tmp_path, [report.Entry.of(deblended)], "one")
    scene = page_data(tmp_path)[0]
    assert scene["rows"][0][scene["columns"].index("flux_g")] is None
