"""Inputs of a run: which files show one field, and the scene that they make together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfdeblend import io
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, finest_first
from tfdeblend.errors import DataError
from tfdeblend.io import companions, images
from tfdeblend.io.atomic import sha256

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.app.runs import Settings

NAMED = 5  # names in a message, at most


@dataclass(frozen=True)
class Input:
    """The files of one field, which is named after the first of them.

    Args:
        files: of its observations. Several have one name, or that of the finest pixels comes first.
        catalog: of its sources, in pixels of the finest observation or on the sky; None: what the observations' files
            hold, that of the finest first, else sources are detected.
        bands: whether the files are those of the bands of one observation.
    """

    files: tuple[Path, ...]
    catalog: Path | None = None
    bands: bool = False

    @property
    def name(self) -> str:
        """The name of the result."""
        return companions.field_name(self.files) if self.bands else io.scene_name(self.files[0])

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the observations apart: the names of their files, or else of the first folders up that differ."""
        paths = [(io.scene_name(file), *reversed(file.absolute().parent.parts)) for file in self.files]
        numbered = tuple(f"{self.name}-{number + 1}" for number in range(len(self.files)))
        return next((level for level in zip(*paths, strict=False) if len({*level}) == len(level)), numbered)

    def digest(self) -> str:
        """Hash of the content of all files, and of those beside them that are read with them.

        Raises: OSError where one cannot be read.
        """
        others = [file for path in self.files for files in companions.beside(path).values() for file in files]
        files = [*self.files, *([self.catalog] if self.catalog and self.catalog.is_file() else []), *others]
        return hashlib.sha256(" ".join(map(sha256, files)).encode()).hexdigest()[:16]

    def read(self, settings: Settings) -> Scene:
        """The scene, the observation of the finest pixels first; it has the field's name.

        Raises: DataError by file and field.
        """
        contents = self.contents(settings)
        table, file = self._sources(contents, settings.detect)
        observations = [one for one, _, _ in contents]
        if len(observations) > 1:
            first, *others = (f"{one.name} ({one.pixel_scale:.3g} arcsec)" for one in observations)
            note = f"the model's pixels are those of {first}, the finest; together with {', '.join(others)}"
            notes = (*observations[0].notes, note)
            observations[0] = replace(observations[0], name=self.name, notes=notes)
        try:
            if table is None:
                return Scene.detect(observations, background=settings.background)
            return Scene.from_catalog(observations, table)
        except DataError as error:
            if table is not None and (field := error.field or "").startswith("catalog"):
                raise error.at(file, field.replace("catalog", table.meta.get("field", "catalog"))) from error
            names = (one.name for one in observations)
            files = {name: file for name, (*_, file) in zip(names, contents, strict=True)}
            raise error.at(files.get(error.source, error.source)) from error

    def contents(self, settings: Settings) -> list[tuple[Observation, Table | None, Path]]:
        """Each observation, the table of sources beside it, and its file: that of the finest pixels first.

        Raises: DataError by file and field.
        """
        how = vars(settings.reading)
        if self.bands:
            one, table = io.read(self.files, **how)
            return [(_by_its_sky(one, self.files[0], settings), table, self.files[0])]
        found = {}
        for name, file in zip(self.names, self.files, strict=True):
            one, table = io.read(file, **how)
            one = _by_its_sky(one, file, settings)
            found[name] = (one if one.name == name else replace(one, name=name)), table, file
        if len(found) == 1:
            return list(found.values())
        try:
            return [found[one.name] for one in finest_first([one for one, _, _ in found.values()])]
        except DataError as error:
            raise error.at(found[error.source][2]) from error

    def _sources(
        self, contents: Sequence[tuple[Observation, Table | None, Path]], detect: bool | None
    ) -> tuple[Table | None, Path]:
        """The sources, in pixels of the first observation or on the sky, and their file; None: to be detected.

        Raises: DataError for a catalogue that cannot be read, and where there is none though there must be.
        """
        if self.catalog is not None:
            return io.read_catalog(self.catalog, images.origin(contents[0][2])), self.catalog
        for number, (one, table, file) in enumerate(contents):
            if table is not None and detect is not True:
                return (table if number == 0 else Scene.from_catalog(one, table).on_sky()), file
        if detect is False:
            raise DataError(self.files[0], "catalog", "expected a catalogue of sources, received none")
        return None, contents[0][2]


def _by_its_sky(one: Observation, file: Path, settings: Settings) -> Observation:
    """The observation with its weights rescaled, and its noise's correlation estimated, where the settings want it."""
    try:
        one = one.with_sky_weights() if settings.rescale_weights else one
        return one.with_sky_correlation() if settings.sky_correlation else one
    except DataError as error:
        raise error.at(file) from error


def find(paths: Sequence[str], catalog: Path | None = None, psf: str | None = None) -> list[Input]:
    """One input for each field of the files that files, folders and globs stand for, by their names.

    Args:
        catalog: of the sources: a file for one input; for several a folder that holds one of each input's name.
        psf: a file that is no input.

    Raises: DataError for nothing found, two files of one name, and a catalogue of one file for several inputs.
    """
    files = [file for file in io.find_inputs(paths) if psf is None or file.absolute() != Path(psf).absolute()]
    found = [Input(group, bands=len(group) > 1) for group in companions.by_field(files)]
    first: dict[str, Input] = {}
    for one in found:
        if (other := first.setdefault(one.name, one)) is not one:
            problem = f"expected a different name for each field, received {one.name} of {other.files[0]} too"
            raise DataError(one.files[0], "name", problem)
    return _with_catalogs(found, catalog)


def find_fields(observations: Sequence[str], catalog: Path | None, settings: Settings) -> list[Input]:
    """Inputs of several observations each.

    Where everything in `observations` is a folder or a glob of several files, the files of one name in each are of one
    field. Else all files are of one field.

    Args:
        catalog: see `find`.

    Raises: DataError as `find`, for fewer than two files, for a name that is not in every folder; for the files of a
        single field also where they cannot be read or have no WCS, as its name is that of the finest.
    """
    groups = [{io.scene_name(file): file for file in io.find_inputs(given)} for given in observations]
    if len(groups) > 1 and all(len(group) > 1 for group in groups):
        shared = set.intersection(*(set(group) for group in groups))
        for given, group in zip(observations, groups, strict=True):
            if alone := sorted(set(group) - shared):
                more = ", ..." if len(alone) > NAMED else ""
                expected = "expected files of the same names as beside every other --observation"
                raise DataError(given, "files", f"{expected}, received {', '.join(alone[:NAMED])}{more} here alone")
        inputs = [Input(tuple(group[name] for group in groups)) for name in sorted(shared)]
    else:
        files = tuple(dict.fromkeys(file for group in groups for file in group.values()))
        if len(files) < 2:
            raise DataError("--observation", None, f"expected two or more of one field, received {files[0]} alone")
        inputs = [Input(tuple(file for _, _, file in Input(files).contents(settings)))]
    return _with_catalogs(inputs, catalog)


def _with_catalogs(inputs: list[Input], catalog: Path | None) -> list[Input]:
    if catalog is None:
        return inputs
    if catalog.is_dir():
        return [replace(one, catalog=_in_folder(catalog, one.name)) for one in inputs]
    if len(inputs) > 1:
        expected = f"expected a folder that holds a catalogue of each of {len(inputs)} names"
        raise DataError("--catalog", None, f"{expected}, received {catalog}")
    return [replace(inputs[0], catalog=catalog)]


def _in_folder(folder: Path, name: str) -> Path:
    """The catalogue of a name; one that is missing shows when it is read."""
    candidates = [folder / f"{name}{suffix}" for suffix in (".ecsv", ".fits", ".csv", ".cat", ".parquet")]
    return next((path for path in candidates if path.is_file()), candidates[0])
