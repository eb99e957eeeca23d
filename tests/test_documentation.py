"""The documentation's code runs as it is printed, its figures are those of the results, and public names explain
themselves."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from epochs import disk_epochs
from fields import expose, places, write

import tfdeblend
from benchmarks.dust import LANE, simulate
from tfdeblend import examples
from tfdeblend.catalog.measure import FLAG_NAMES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\|.*\|$", re.MULTILINE)
DOCUMENTED = re.compile(r"^\.\. auto(module|class|function):: ([\w.]+)$", re.MULTILINE)


def hsc_files(folder: Path) -> None:
    """Write a cut-out as HSC's tools give it: a file a band with its mask's planes and zero point, and its PSF."""
    observation = examples.load("simulated-hsc-blend").observation
    wcs = expose("none", 0.168, observation.shape[1:], bands="g").wcs
    (folder / "hsc").mkdir()
    for number, band in enumerate(observation.bands):
        header = wcs.to_header()
        header["FLUXMAG0"] = 10 ** (0.4 * observation.zeropoints[number])
        mask = fits.Header({"MP_BAD": 0, "MP_SAT": 1, "HIERARCH MP_DETECTED": 5})
        planes = [
            fits.PrimaryHDU(),
            fits.ImageHDU(observation.images[number], header, name="IMAGE"),
            fits.ImageHDU(np.zeros(observation.shape[1:], np.int32), mask, name="MASK"),
            fits.ImageHDU(1 / observation.weights[number], name="VARIANCE"),
        ]
        path = folder / "hsc" / f"cutout-HSC-{band.upper()}-9813.fits"
        fits.HDUList(planes).writeto(path)
        fits.PrimaryHDU(observation.psf[number]).writeto(path.with_name(f"{path.stem}_psf.fits"))


def own_files(folder: Path) -> None:
    """Write an image cube with its errors, its PSFs and a catalogue, none of which says more than it must."""
    observation = expose("field", bands="gri")
    images = [
        fits.PrimaryHDU(),
        fits.ImageHDU(observation.images, name="SCI"),
        fits.ImageHDU(observation.weights**-0.5, name="ERR"),
    ]
    fits.HDUList(images).writeto(folder / "field.fits")
    fits.PrimaryHDU(observation.psf).writeto(folder / "psf.fits")
    Table(np.round(places(observation), 1), names=("x", "y")).write(folder / "sources.csv")


def two_surveys(folder: Path) -> None:
    """Write one field on fine and on coarse pixels."""
    write(folder, expose("hst", 0.1, (64, 64), seeing=0.4, bands="r"))
    write(folder, expose("hsc", 0.2, (32, 32), 30, bands="gi"))


def epochs(folder: Path) -> None:
    """Write four epochs, two of them before the transient."""
    (folder / "epochs").mkdir()
    for epoch in disk_epochs():
        write(folder / "epochs", epoch)


def dusty_galaxy(folder: Path) -> None:
    """Write a galaxy behind a lane."""
    write(folder, simulate(LANE)[0])


def clone(folder: Path) -> None:
    """Show the clone's examples."""
    (folder / "examples").symlink_to(ROOT / "examples")


INPUTS: dict[str, Callable[[Path], None]] = {  # of pages that begin with files of the reader's
    "hsc-cutout": hsc_files,
    "my-images": own_files,
    "hst-hsc": two_surveys,
    "light-curves": epochs,
    "dust": dusty_galaxy,
    "coadd-slurm": clone,
}
PAGES = [ROOT / "README.md", DOCS / "five-minutes.md", *sorted((DOCS / "howto").glob("*.md"))]
CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
def test_code_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks run in their order in one folder, which holds the reader's files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    INPUTS.get(page.stem, lambda folder: None)(tmp_path)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, env=os.environ | {"PATH": programs})


def test_readme_quotes_results() -> None:
    """Every row of a table of the README is, as far as it goes, a row of the results."""
    results = (DOCS / "results" / "catsim.md").read_text()
    rows = [row.rstrip("| ") for row in TABLE.findall((ROOT / "README.md").read_text()) if "---" not in row]
    assert rows and all(row in results for row in rows)


def test_pages_explain_every_flag() -> None:
    """The pages on flags and on files have a row for each bit that a catalogue may have, and for no other."""
    for page in (DOCS / "reference" / "flags.md", DOCS / "formats.md"):
        rows = page.read_text().split("\n| flag |")[1].split("\n\n")[0]
        assert [int(bit) for bit in re.findall(r"^\| (\d+) \|", rows, re.MULTILINE)] == sorted(FLAG_NAMES)


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name: str) -> None:
    """What the files of the top level link to is there; Sphinx checks the links of the pages."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_sample_scenes() -> None:
    """They have the truth of each source, are fitted by the shipped prior's rules, and are small."""
    for name in examples.names():
        scene, truth = examples.load(name), examples.truth(name)
        assert len(truth) == len(scene.sources)
        assert all(f"flux_{band}" in truth.colnames for band in scene.bands)
        assert scene.zeropoints is not None and scene.observation.notes == ()
        assert examples.path(name).stat().st_size < 300_000
    with pytest.raises(ValueError, match="simulated-hsc-blend"):
        examples.load("nonsense")


def listed() -> Iterator[tuple[str, Any]]:
    """Give all that the reference of the Python API lists, by name."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for kind, name in DOCUMENTED.findall(page.read_text()):
            if kind == "module":
                yield name, import_module(name)
                continue
            module, _, attribute = name.rpartition(".")
            yield name, getattr(import_module(module), attribute)


def public_names() -> dict[str, Any]:
    """Give the public names, those of classes with their own public methods and properties."""
    found = dict(listed())
    for name, thing in list(found.items()):
        if inspect.ismodule(thing):
            own = [key for key in getattr(thing, "__all__", vars(thing)) if not key.startswith("_")]
            own = [key for key in own if getattr(getattr(thing, key), "__module__", "") == thing.__name__]
            found |= {f"{name}.{key}": getattr(thing, key) for key in own}
    for name, thing in list(found.items()):
        if inspect.isclass(thing):
            members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            calls = {key: value for key, value in members.items() if callable(value) or is_descriptor(value)}
            found |= {f"{name}.{key}": value for key, value in calls.items()}
    return found


def is_descriptor(value: Any) -> bool:
    """Tell whether a member of a class is a property or a method of the class itself."""
    return isinstance(value, property | classmethod | staticmethod) or hasattr(value, "func")


def test_reference_lists_the_public_names() -> None:
    """What the package exports is in the reference."""
    things = {id(thing) for thing in dict(listed()).values()}
    exported = {name: getattr(tfdeblend, name) for name in tfdeblend.__all__ if not name.startswith("_")}
    assert [name for name, thing in exported.items() if id(thing) not in things] == []


def test_public_names_are_documented() -> None:
    """Each docstring begins with a sentence: from a capital letter to a full stop, in three words or more."""
    silent = {}
    for name, thing in public_names().items():
        text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
        sentence = re.match(r"[A-Z].*?\.(?= |$)", text)
        if not sentence or len(sentence.group().split()) < 3:
            silent[name] = text[:60]
    assert silent == {}
