"""DIR/index.html: one self-contained page over all scenes of a run.

Pictures are embedded up to `EMBED_LIMIT` bytes in all; past that the page links to DIR/<scene>.png beside it.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from tfdeblend.io.atomic import written_whole
from tfdeblend.io.files import parsing, scene_name
from tfdeblend.io.json_values import dumps, rows

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.catalog.result import Deblended

EMBED_LIMIT = 40e6  # bytes
STRIPS = 24  # posterior samples shown of a scene, at most
TILE = 96  # pixels, side of a source in a strip


@dataclass(frozen=True, eq=False)
class Entry:
    """One scene of a run, without its images.

    observations: the names of those that were fitted, each with its bands. undeclared: detections on the residuals of
    all of them. notes: of all of them. strips: pictures of posterior samples. error: why the scene failed or, where it
    has a catalogue, its pictures.
    """

    name: str
    header: Mapping[str, Any] = field(default_factory=dict)
    catalog: Table | None = None
    observations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    undeclared: int = 0
    notes: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    error: str | None = None

    @classmethod
    def of(cls, deblended: Deblended) -> Entry:
        observations = {one.name: one.bands for one in deblended.scene.observations}
        undeclared = sum(len(view.undeclared) for view in deblended.views if view.undeclared is not None)
        notes = tuple(dict.fromkeys(note for one in deblended.scene.observations for note in one.notes))
        strips = () if deblended.samples is None else sample_strips(deblended.samples)
        name, header, catalog = deblended.scene.name, deblended.header, deblended.catalog
        return cls(name, header, catalog, observations, undeclared, notes, strips)

    @classmethod
    def read(cls, path: Path) -> Entry:
        """Reads the entry of a saved result. Raises: DataError where the file is missing, broken or no result."""
        from astropy.io import fits
        from astropy.table import Table

        with parsing(path, "file"), fits.open(path, lazy_load_hdus=False) as hdus:
            header = {key.lower(): value for key, value in hdus[0].header.items()}
            catalog = Table.read(hdus["CATALOG"], format="fits", mask_invalid=False)
            catalog.convert_bytestring_to_unicode()
            observations: dict[str, list[str]] = {}
            for name, band in zip(hdus["BANDS"].data["observation"], hdus["BANDS"].data["band"], strict=True):
                observations.setdefault(str(name), []).append(str(band))
            undeclared = sum(len(hdu.data) for hdu in hdus if hdu.name.partition("_")[0] == "UNDECLARED")
            noted = [hdu.data["note"] for hdu in hdus if hdu.name.partition("_")[0] == "NOTES"]
            notes = tuple(dict.fromkeys(str(note) for notes in noted for note in notes))
            strips = sample_strips(hdus["SAMPLES"].data.astype(np.float32)) if "SAMPLES" in hdus else ()
        return cls(scene_name(path), header, catalog, observations, undeclared, notes, strips)

    def document(self, figure: str | None) -> dict[str, Any]:
        """What the page shows of the scene. figure: the address of its picture."""
        columns, units = [], {}
        if self.catalog is not None:
            columns = list(self.catalog.colnames)
            units = {name: str(self.catalog[name].unit) for name in columns if self.catalog[name].unit}
        return {
            "name": self.name,
            "header": dict(self.header),
            "columns": columns,
            "units": units,
            "rows": [] if self.catalog is None else [list(row.values()) for row in rows(self.catalog)],
            "observations": [{"name": name, "bands": bands} for name, bands in self.observations.items()],
            "undeclared": self.undeclared,
            "notes": self.notes,
            "figure": figure,
            "samples": self.strips,
            "error": self.error,
        }


def write_report(folder: Path, entries: Sequence[Entry], title: str) -> Path:
    """Writes folder/index.html, whole or not at all, and returns its path.

    Raises: OSError where it cannot be written.
    """
    paths = {entry.name: folder / f"{entry.name}.png" for entry in entries if entry.catalog is not None}
    paths = {name: path for name, path in paths.items() if path.exists()}
    embed = sum(path.stat().st_size for path in paths.values()) <= EMBED_LIMIT
    links = {
        name: png_uri(path.read_bytes()) if embed else quote(os.fsencode(path.name)) for name, path in paths.items()
    }
    document = {"title": title, "scenes": [entry.document(links.get(entry.name)) for entry in entries]}
    data = dumps(document, indent=None).replace("<", "\\u003c")  # so that no text can end the script element
    page = files("tfdeblend.app").joinpath("report.html").read_text(encoding="utf-8").replace("{{data}}", data)
    target = folder / "index.html"
    with written_whole(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def png_uri(data: bytes) -> str:
    """The address by which a page holds a PNG in itself."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def sample_strips(samples: np.ndarray) -> tuple[str, ...]:
    """One picture of each posterior sample (S, K, C, P, P): its sources side by side, all samples on one stretch.

    At most `STRIPS` samples, evenly thinned.
    """
    from PIL import Image

    from tfdeblend.plots.stretch import Stretch, as_bytes

    kept = samples[np.linspace(0, len(samples) - 1, min(len(samples), STRIPS)).round().astype(int)]
    stretch = Stretch.of_light(kept.mean(0))
    scale = max(1, math.ceil(TILE / kept.shape[-1]))
    uris = []
    for sample in kept:
        tiles = [np.pad(stretch(source)[::-1], ((0, 0), (0, 1), (0, 0)), constant_values=0.4) for source in sample]
        buffer = io.BytesIO()
        strip = as_bytes(np.concatenate(tiles, 1).repeat(scale, 0).repeat(scale, 1))
        Image.fromarray(strip).save(buffer, format="png")
        uris.append(png_uri(buffer.getvalue()))
    return tuple(uris)
