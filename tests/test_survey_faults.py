"""Faults of a survey run: what is damaged or dies costs its own tiles, is done again or reported, and no more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from scene_files import celestial

from tfdeblend.app import survey_page
from tfdeblend.cluster import executor
from tfdeblend.errors import DataError
from tfdeblend.io import atomic
from tfdeblend.survey import Survey, SurveySettings, borders, tables, tasks
from tfdeblend.survey.run import Report
from tfdeblend.survey.tiles import Tile

pytest.importorskip("pyarrow")
SIDE, FLUX, WIDTH, PSF_SIGMA = 192, 800.0, 2.4, 1.8  # pixels of the image; of its round galaxies; pixels
MIDDLE = slice(64, 128), slice(64, 128)  # the tile of number 4
Change = Callable[[np.ndarray, np.ndarray], None]  # of pixels and variances, in place


def lattice() -> np.ndarray:
    """(K,2) places on edges and corners of tiles of 64 pixels, a little beside them, and between."""
    first = np.array([20.0, 63.5, 95.2, 127.5, 160.0])
    number = np.arange(len(first) ** 2)
    y, x = np.meshgrid(first, first, indexing="ij")
    shift = np.stack([number * 7 % 9, number * 5 % 9]) / 4 - 1
    return np.stack([y.ravel(), x.ravel()], 1) + shift.T


def coadd(
    folder: Path, change: Change | None = None, places: np.ndarray | None = None, compressed: bool = False
) -> SurveySettings:
    """Two bands of round Gaussian galaxies in noise of 1 upon a sky of 5; `change` is made to both."""
    folder.mkdir(exist_ok=True)
    y, x = np.indices((SIDE, SIDE))
    light = np.full((SIDE, SIDE), 5.0)
    for row, column in lattice() if places is None else places:
        light += FLUX * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * WIDTH**2)) / (2 * np.pi * WIDTH**2)
    psf = np.exp(-((np.indices((25, 25)) - 12) ** 2).sum(0) / (2 * PSF_SIGMA**2))
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    for seed, band in enumerate("gr"):
        pixels = (light + np.random.default_rng(seed).normal(size=light.shape)).astype(np.float32)
        variance = np.ones_like(pixels)
        if change is not None:
            change(pixels, variance)
        header = celestial().to_header()
        header.update({"FILTER": band, "MAGZERO": 27.0})
        hdus = [kind(pixels, header, name="IMAGE"), kind(variance, name="VARIANCE")]
        hdus += [fits.ImageHDU((psf / psf.sum()).astype(np.float32), name="PSF")]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / f"coadd_{band}.fits")
    files = tuple(str(folder / f"coadd_{band}.fits") for band in "gr")
    return SurveySettings(files, prior="exponential", tile=64, border=64, margin=32)


def detections(settings: SurveySettings) -> tables.Table:
    found = [tasks.detect(settings, tile) for tile in settings.tiles()]
    return tasks.merge(found, settings.tiles(), settings.shape)


def tables_of(out: Path) -> dict[str, bytes]:
    """All that a run has written, but for what it took."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name != "run.json" and file.parent.name != "used"
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SurveySettings:
    return coadd(tmp_path_factory.mktemp("coadd"))


@pytest.fixture
def fits_of(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Counts the fits of each tile, which cost nothing: their results are of the detections alone."""
    count: Counter[int] = Counter()

    def deblend(settings: SurveySettings, tile: Tile, number: int, found: tables.Table) -> tasks.TileResult:
        count[number] += 1
        own = found["tile"] == number
        rows = {name: tables.empty(columns) for name, columns in tables.of_tile(("g", "r"), "nJy").items()}
        of_each = {name: np.zeros(own.sum(), values.dtype) for name, values in rows["objects"].items()}
        rows["objects"] = of_each | {name: found[name][own] for name in ("objectId", "tile", "x", "y")}
        return tasks.TileResult(**rows, bands=("g", "r"), unit="nJy")

    monkeypatch.setattr(tasks, "deblend", deblend)
    return count


def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bytes(
    settings: SurveySettings, tmp_path: Path, fits_of: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stop costs one task at most; what a process that was killed has left over goes."""
    Survey(settings, tmp_path / "whole").run(progress=False)
    whole, write = tables_of(tmp_path / "whole"), tables.write
    fits_of.clear()
    out = tmp_path / "stopped"
    for left in (6, 9, 12):  # writes until then

        def stopping(path: Path, *arguments: Any) -> str:
            nonlocal left
            left -= 1
            if left == 0:
                path.with_name(atomic.temporary_name(path.name, str(2**22 + 1))).write_bytes(b"half a fi")
                raise KeyboardInterrupt
            return write(path, *arguments)

        monkeypatch.setattr(tables, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            Survey(settings, out).run(progress=False)
    monkeypatch.setattr(tables, "write", write)
    Survey(settings, out).run(progress=False)
    assert tables_of(out) == whole
    assert sum(fits_of.values()) <= len(settings.tiles()) + 3


def test_what_a_run_says_of_itself_may_be_damaged(
    settings: SurveySettings, tmp_path: Path, fits_of: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile without its checksums is done again, and the page goes without what it took; the folder is the same
    wherever tasks are done."""
    monkeypatch.chdir(tmp_path)
    Survey(settings, "run").run(progress=False)
    out = tmp_path / "run"
    whole = tables_of(out)
    for text in ('{"detections": "', "null"):
        fits_of.clear()
        (out / "done" / "tile_0001_0001.json").write_text(text)
        (out / "used" / "tile_0000_0000.json").write_text(text)
        survey = Survey(settings, "run")
        assert survey.out == out and survey.run(progress=False).done == 1
        assert tables_of(out) == whole and fits_of == {4: 1}
    survey_page.write_page(out)
    (out / "run.json").write_text("{")
    with pytest.raises(DataError, match="expected the run of these settings"):
        Survey(settings, out)


def test_notes_of_tiles_are_reported(
    settings: SurveySettings, tmp_path: Path, fits_of: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that differ in their numbers alone are one."""
    fit, count = tasks.deblend, len(settings.tiles())

    def deblend(settings: SurveySettings, tile: Tile, number: int, detections: tables.Table) -> tasks.TileResult:
        return fit(settings, tile, number, detections)._replace(notes=(f"{number} pixels masked",) if number else ())

    monkeypatch.setattr(tasks, "deblend", deblend)
    report = Survey(settings, tmp_path).run(progress=False)
    assert report.notes == {"N pixels masked": count - 1}
    assert f"note on {count - 1} of {count} tiles: N pixels masked" in str(report)


@pytest.mark.parametrize("side", [64, 128, 192])
def test_no_source_is_lost_or_doubled_where_tiles_meet(settings: SurveySettings, side: int) -> None:
    """Whatever the tiles, the lattice's places are found once each."""
    found = detections(replace(settings, tile=side))
    bright = found["snr"] > 10
    apart = np.hypot(*(np.stack([found["y"], found["x"]], 1)[bright][:, None] - lattice()).T)
    assert sorted(apart.argmin(0).tolist()) == list(range(len(lattice())))
    assert apart.min(0).max() < 1 and len(np.unique(found["objectId"])) == len(found["y"])


def poison(value: float, of: int) -> Change:
    """Set the middle tile's pixels (of 0) or variances (of 1)."""

    def change(*arrays: np.ndarray) -> None:
        arrays[of][MIDDLE] = value

    return change


@pytest.mark.parametrize(
    "change",
    [poison(np.nan, 0), poison(1e30, 0), poison(np.inf, 1), poison(0.0, 1), poison(-1.0, 1), poison(1e-12, 1)],
    ids=["NaN", "huge", "masked", "no variance", "negative variance", "absurd weights"],
)
def test_what_is_bad_in_a_tile_leaves_the_others(
    expected: dict[int, tables.Table], tmp_path: Path, change: Change
) -> None:
    """It is masked, or refused; sources of other tiles are found where they were, but for those at its edge."""
    bad = coadd(tmp_path / "bad", change)
    for number, whole in expected.items():
        first, second = (
            np.stack([table["y"], table["x"]], 1)[(table["snr"] > 10) & ~near(table)]
            for table in (whole, tasks.detect(bad, bad.tiles()[number]))
        )
        assert len(first) == len(second)
        assert np.hypot(*(first[:, None] - second).T).min(0).max(initial=0) < 0.1


@pytest.fixture(scope="module")
def expected(settings: SurveySettings) -> dict[int, tables.Table]:
    """What is detected in some of the tiles around the middle one."""
    return {number: tasks.detect(settings, settings.tiles()[number]) for number in (0, 5, 7)}


def near(table: tables.Table) -> np.ndarray:
    """Sources at the edge of the middle tile, or in it."""
    return np.all([(table[axis] > 64 - 8) & (table[axis] < 128 + 8) for axis in "yx"], 0)


def test_a_border_that_is_masked_keeps_the_place_on_the_sky(settings: SurveySettings, tmp_path: Path) -> None:
    bad = coadd(tmp_path / "bad", poison(-1.0, 1))
    for number in (0, 3, 5, 8):
        whole, part = (borders.read(one, one.tiles()[number]) for one in (settings, bad))
        assert whole.shape == part.shape and not part.valid.all()
        seen = part.valid
        np.testing.assert_array_equal(part.images[seen], whole.images[seen])
        assert whole.sky(70.0, 50.0).separation(part.sky(70.0, 50.0)).arcsec < 1e-6
    with pytest.raises(DataError, match="VARIANCE"):
        borders.read(bad, bad.tiles()[4])


def die_of_the_first(settings: SurveySettings, out: Path, tile: Tile, number: int) -> dict[str, Any]:
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_an_error_and_the_others_go_on(
    settings: SurveySettings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also those that waited for the workers that died; TensorFlow says nothing there."""
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    work = [(settings, Path(), tile, number) for number, tile in enumerate(settings.tiles())]
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), executor(2, None) as submit:
        results = {arguments[-1]: found for arguments, found in submit(die_of_the_first, work)}
    assert sorted(results) == list(range(len(work)))
    assert type(results.pop(0)).__name__ == "WorkerDied"
    assert all(used == {"number": number} for number, used in results.items())
    assert "oneDNN" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(settings: SurveySettings, tmp_path: Path) -> None:
    """The catalogue has the bytes of a run that nobody disturbed, of one process."""
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("distributed")
    few = replace(settings, threshold=20.0)
    Survey(few, tmp_path / "whole").run(progress=False)
    survey = Survey(few, tmp_path / "killed")
    reports: list[Report] = []
    running = threading.Thread(target=lambda: reports.append(survey.run(2, progress=False)))
    running.start()
    while running.is_alive() and not [*(survey.out / "done").glob("*.json")]:
        time.sleep(0.05)
    workers = [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
    workers[-1].kill()
    running.join()
    assert reports[0].failures == 0
    assert tables_of(survey.out) == tables_of(tmp_path / "whole")
