"""Pictures of a survey run: a JPEG of each tile in colour, and a pyramid of them that shows the whole image.

The folder `pictures` of a run holds

    pictures.json                       the colours, the same for all tiles, and the tiles that could not be drawn
    <layer>/<level>/<row>_<column>.jpg  level 0: the tiles; level l: squares of 2^l tiles, in pixels of 2^l of the image

The layers are the image and, of a run with models, model and residual.

Row 0 of the image is at the bottom of a picture. A JPEG's comment tells what it was drawn from: one that is there and
says the same is not drawn again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.cluster import Submit
from tfdeblend.data.observation import Observation
from tfdeblend.data.sky import detection_image, stated_noise
from tfdeblend.errors import DataError, one_line
from tfdeblend.io.atomic import written_whole
from tfdeblend.survey import models, tables
from tfdeblend.survey.outputs import MODELS, checksums
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tasks import NJY, observe
from tfdeblend.survey.tiles import Tile

FOLDER = "pictures"
LAYERS = ("image", "model", "residual")
SAMPLE = 9  # tiles at most by which the colours are chosen
WHITE = 2000.0  # sigma of the mean of bands
MASKED = (56, 61, 69)  # the colour of pixels that are masked in all bands shown
QUALITY = 88  # of JPEGs
# Residuals from -LIMIT to LIMIT sigma lie on the line between the colours of the ends, with grey in the middle. So
# means of colours are the colours of means: in the pyramid noise fades, and what is no noise remains.
LIMIT, ENDS = 5.0, ((1, 58, 188), (255, 198, 68))

Place = tuple[int, int]  # row and column of a picture


@dataclass(frozen=True)
class Colours:
    """How bands become colours, by the stretch of all figures.

    Args:
        key: of the run.
        shown: the bands that are red, green and blue.
        scale: of each of them to one unit, nJy where zero points are known.
        noise: the standard deviation of the mean of the three in a pixel, in that unit.
        bands, pixel_scale: of the images.
    """

    key: str
    shown: tuple[str, ...]
    scale: tuple[float, ...]
    noise: float
    bands: tuple[str, ...]
    pixel_scale: float | None

    @classmethod
    def choose(cls, settings: SurveySettings, tiles: Sequence[Tile]) -> Colours | None:
        """Choose the three deepest bands, by some of the tiles; None where none can be read, or has a pixel that is
        not masked.

        Two bands are blue and red with their mean between them; one is grey.
        """
        every = max(1, -(-len(tiles) // SAMPLE))
        noises, seen = [], None
        for tile in tiles[::every]:
            try:
                seen = settings.read(tile.inner)
            except (DataError, OSError):  # drawing it will say so
                continue
            noises.append(np.where(seen.valid.any((1, 2)), stated_noise(seen), np.nan))
        if seen is None:
            return None
        known = np.isfinite(np.array(noises)).any(0)
        if not known.any():
            return None
        jansky = np.ones(len(seen.bands)) if seen.zeropoints is None else 10 ** (0.4 * (NJY - seen.zeropoints))
        sigma = np.full(len(known), np.inf)
        sigma[known] = np.nanmedian(np.array(noises)[:, known], 0) * jansky[known]
        deepest = sorted(np.argsort(sigma, kind="stable")[: min(3, known.sum())])  # from blue to red
        noise = float(np.sqrt((sigma[deepest] ** 2).sum()) / len(deepest))
        shown = [seen.bands[k] for k in reversed(deepest)]
        scale = [float(jansky[k]) for k in reversed(deepest)]
        return cls(settings.key, tuple(shown), tuple(scale), noise, seen.bands, seen.pixel_scale)

    @classmethod
    def read(cls, out: Path) -> Colours | None:
        """Read the colours of the run in a folder; None where it has no pictures."""
        known = tables.read_json(out / FOLDER / "pictures.json").get("colours")
        return None if known is None else cls(**_with_tuples(known))

    @property
    def key_of_pictures(self) -> str:
        """What tells pictures in these colours from others."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def __call__(self, images: np.ndarray, observation: Observation) -> np.ndarray:
        """Turn images (C,H,W) of an observation's bands into colours (H,W,3) of bytes."""
        from tfdeblend.plots.stretch import Stretch, as_bytes

        which = [observation.bands.index(band) for band in reversed(self.shown)]
        stretch = Stretch(np.array(self.scale[::-1]), self.noise, WHITE * self.noise)
        colours = as_bytes(stretch(np.nan_to_num(images[which], posinf=0, neginf=0)))
        colours[~observation.valid[which].any(0)] = MASKED
        return colours


def residual_colours(residual: np.ndarray, observation: Observation) -> np.ndarray:
    """Turn the residual (C,H,W) of an observation, bands weighted as in detection, into colours (H,W,3) of bytes."""
    combined, sigma = detection_image(np.nan_to_num(residual), observation.weights)
    low, high = np.array(ENDS)
    share = np.clip(combined / LIMIT / 2 + 0.5, 0, 1)[..., None]
    colours = np.rint(low + share * (high - low)).astype(np.uint8)
    colours[~np.isfinite(sigma)] = MASKED
    return colours


def draw_tile(settings: SurveySettings, out: Path, tile: Tile, number: int) -> dict[str, Any]:
    """Draw the layers of a tile that are not drawn yet; the image is less its local sky."""
    began = time.process_time()
    colours = Colours.read(out)
    assert colours is not None
    seen = observe(settings, tile)
    inner = [slice(part.start - first, part.stop - first) for part, first in zip(tile.inner, tile.corner, strict=True)]
    seen = seen.cut(*inner)
    missing = _missing(out, tile, colours)

    def drawn() -> Iterator[tuple[str, np.ndarray]]:
        yield "image", colours(seen.images, seen)
        if missing.keys() - {"image"}:
            light, residual = models.read(MODELS.path(out, tile))
            yield "model", colours(light, seen)
            yield "residual", residual_colours(residual, seen)

    for layer, picture in drawn():
        if layer in missing:
            _write(path(out, layer, 0, (tile.row, tile.column)), picture, missing[layer])
    return {"cpu": time.process_time() - began}


def _missing(out: Path, tile: Tile, colours: Colours) -> dict[str, str]:
    """What the pictures of a tile that are not drawn yet are to be drawn from, by layer.

    Pictures of what the tile has no more, as its fit failed, are removed.
    """
    key, sums = colours.key_of_pictures, checksums(out, tile)
    model = tables.read_json(sums).get(MODELS.name)
    sources = {layer: key if layer == "image" else model and f"{key} {model}" for layer in LAYERS}
    missing = {}
    for layer, source in sources.items():
        target = path(out, layer, 0, (tile.row, tile.column))
        if source is None:
            target.unlink(missing_ok=True)
        elif _drawn_from(target) != source:
            missing[layer] = source
    return missing


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def path(out: Path, layer: str, level: int, place: Place) -> Path:
    """Give the file of a picture."""
    return out / FOLDER / layer / str(level) / f"{place[0]}_{place[1]}.jpg"


def layers(out: Path) -> list[str]:
    """List the layers of which the folder of a run has pictures."""
    return [layer for layer in LAYERS if (out / FOLDER / layer).is_dir()]


def levels(tiles: Sequence[Tile]) -> int:
    """Count the levels of the pyramid: the last is one picture."""
    across = max(max(tile.row, tile.column) for tile in tiles) + 1
    return (across - 1).bit_length() + 1


def draw(
    settings: SurveySettings,
    out: Path,
    tiles: Sequence[Tile],
    submit: Submit,
    counted: Callable[..., Any],
) -> Iterator[dict[str, Any]]:
    """Draw the tiles that are not drawn yet, then the pyramid, and yield what each took.

    Args:
        submit: does tasks, see `cluster.executor`. counted: shows how many are done, of how many.
    """
    colours = Colours.read(out)
    if colours is None or colours.key != settings.key:
        colours = Colours.choose(settings, tiles)
    undrawn: dict[str, str] = {}
    _remember(out, colours, undrawn)
    if colours is None:
        return
    left = [number for number, tile in enumerate(tiles) if _missing(out, tile, colours)]
    results = submit(draw_tile, ((settings, out, tiles[number], number) for number in left))
    for (*_, number), used in counted(results, len(left)):
        if isinstance(used, Exception):
            tile = tiles[number]
            for layer in _missing(out, tile, colours):
                path(out, layer, 0, (tile.row, tile.column)).unlink(missing_ok=True)
            undrawn[tile.name] = one_line(str(used))
        else:
            yield used
    _remember(out, colours, undrawn)
    began = time.process_time()
    for layer in layers(out):
        _pyramid(out, layer, tiles)
    yield {"cpu": time.process_time() - began}


def failed(out: Path) -> dict[str, str]:
    """Name the tiles that could not be drawn, and say why."""
    return tables.read_json(out / FOLDER / "pictures.json").get("failed", {})


def _remember(out: Path, colours: Colours | None, undrawn: dict[str, str]) -> None:
    facts = {"colours": None if colours is None else asdict(colours), "failed": undrawn}
    with written_whole(out / FOLDER / "pictures.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _pyramid(out: Path, layer: str, tiles: Sequence[Tile]) -> None:
    """Draw the levels above the tiles, each of means of four pixels of the one below."""
    sides = {(tile.row, tile.column): [part.stop - part.start for part in tile.inner] for tile in tiles}
    for level in range(1, levels(tiles)):
        above: dict[Place, list[int]] = {}
        for place in sorted({(row // 2, column // 2) for row, column in sides}):
            rows = [row for row in (2 * place[0], 2 * place[0] + 1) if (row, 2 * place[1]) in sides]
            columns = [column for column in (2 * place[1], 2 * place[1] + 1) if (rows[0], column) in sides]
            heights, widths = [sides[row, columns[0]][0] for row in rows], [sides[rows[0], col][1] for col in columns]
            above[place] = [-(-sum(heights) // 2), -(-sum(widths) // 2)]
            names = {child: path(out, layer, level - 1, child) for child in product(rows, columns)}
            source = hashlib.sha256(" ".join(map(str, map(_drawn_from, names.values()))).encode()).hexdigest()
            target = path(out, layer, level, place)
            if _drawn_from(target) == source:
                continue
            canvas = np.full((sum(heights), sum(widths), 3), MASKED, np.float32)
            for (row, column), name in names.items():
                if name.is_file():
                    picture = _read(name)
                    y, x = (row % 2) * heights[0], (column % 2) * widths[0]
                    canvas[y : y + len(picture), x : x + picture.shape[1]] = picture
            canvas = np.pad(canvas, [(0, side % 2) for side in canvas.shape[:2]] + [(0, 0)], mode="edge")
            means = canvas.reshape(len(canvas) // 2, 2, canvas.shape[1] // 2, 2, 3).mean((1, 3))
            _write(target, np.rint(means).astype(np.uint8), source)
        sides = above


def _write(target: Path, colours: np.ndarray, source: str) -> None:
    from PIL import Image

    with written_whole(target) as temporary:
        how = {"quality": QUALITY, "subsampling": 0, "comment": source.encode()}  # a colour a pixel
        Image.fromarray(colours[::-1]).save(temporary, format="jpeg", **how)


def _read(name: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(name) as picture:
        return np.asarray(picture.convert("RGB"))[::-1]


def _drawn_from(name: Path) -> str | None:
    """What a picture was drawn from; None for one that is not there or broken."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(name) as picture:
            return bytes(picture.info.get("comment", b"")).decode()
    except (OSError, UnidentifiedImageError):
        return None
