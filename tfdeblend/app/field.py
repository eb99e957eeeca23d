"""A run over one field that several observations show, fitted together into one result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend import io
from tfdeblend.app.runs import Run, Settings, digest, input_digest
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from astropy.table import Table

AUTOMATIC = "bulge-disk"


@dataclass
class FieldRun(Run):
    """Deblends one field, whose name is that of the first of its observations; that has the finest pixels.

    files: of the observations, in their order. catalog: of the sources, in pixels of the first or on the sky, and its
    file; None: detected.
    """

    observations: Sequence[Observation] = ()
    files: Sequence[Path] = ()
    catalog: Table | None = None
    catalog_file: Path | None = None

    @classmethod
    def of(
        cls, files: Sequence[Path], catalog_file: Path | None, out: Path, settings: Settings, **options: Any
    ) -> FieldRun:
        """Reads everything. catalog_file: see `io.read_catalog`; None: what the observations' own files hold.

        Raises: DataError for what cannot be read, fewer than two observations, and those without a WCS.
        """
        from tfdeblend.forward.field import finest_first

        if len(files) < 2:
            raise DataError("--observation", None, f"expected two or more of one field, received {files[0]} alone")
        contents = {path: io.read(path, mask_planes=settings.mask_planes) for path in files}
        paths = {observation.name: path for path, (observation, _) in contents.items()}
        with _by_path(paths):
            observations = finest_first([observation for observation, _ in contents.values()])
        order = [paths[one.name] for one in observations]
        tables = [contents[path][1] for path in order]
        catalog = _catalog(observations, tables, catalog_file, settings.detect)
        return cls(
            order[:1],
            out,
            settings,
            **options,
            observations=observations,
            files=order,
            catalog=catalog,
            catalog_file=catalog_file,
        )

    def _digest(self, path: Path) -> str:
        companions = [input_digest(file) for file in self.files]
        return digest(*([self.catalog_file] if self.catalog_file else []), text=" ".join(companions))

    def _check(self, paths: Sequence[Path]) -> dict[Path, Scene | None]:
        first, *others = (f"{one.name} ({one.pixel_scale:.3g} arcsec)" for one in self.observations)
        self._say(f"the model's pixels are those of {first}, the finest; together with {', '.join(others)}")
        for one in self.observations:
            for note in one.notes:
                self._say(f"{one.name}: {note}")
        return dict.fromkeys(paths)

    def _deblend(self, good: dict[Path, Scene | None], config: str) -> None:
        from tfdeblend.joint import deblend_together

        settings = self.settings
        prior = AUTOMATIC if settings.prior == "auto" else settings.prior
        paths = {one.name: path for one, path in zip(self.observations, self.files, strict=True)}
        with self._progress(None, "deblending", 1) as bar, _by_path(paths, self.catalog_file):
            result = deblend_together(
                self.observations,
                self.catalog,
                prior,
                background=settings.background,
                method=settings.method,
                seed=settings.seed,
                **(settings.sampling.options() if settings.sampling else {}),
            )
            for path in good:
                self._write(path, result, config)
            bar.update()

    def _record(self, path: Path) -> dict[str, Any]:
        return super()._record(path) | {"observations": [str(file) for file in self.files]}


def _catalog(
    observations: Sequence[Observation], tables: Sequence[Table | None], file: Path | None, detect: bool | None
) -> Table | None:
    """Of the file, else of the first observation that has one, as the first's pixels or the sky tell; None: detect."""
    if file is not None:
        return io.read_catalog(file)
    for number, (one, table) in enumerate(zip(observations, tables, strict=True)):
        if table is not None and detect is not True:
            return table if number == 0 else Scene.from_catalog(one, table).on_sky()
    if detect is False:
        raise DataError("--catalog", None, "expected a catalogue, here or in an observation's file, received none")
    return None


@contextmanager
def _by_path(paths: Mapping[str, Path], catalog: Path | None = None) -> Iterator[None]:
    """Names the file in errors that name an observation, or its catalogue."""
    try:
        yield
    except DataError as error:
        of_catalog = catalog is not None and (error.field or "").startswith("catalog")
        raise error.at(catalog if of_catalog else paths.get(error.source, error.source)) from error
