"""What the commands promise: outputs, exit codes, resuming, failures. The deblender is a stand-in."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table
from helpers import gaussian, make_deblended, result_of, write_scene

from tfdeblend.app.cli import build_parser, main
from tfdeblend.catalog import files
from tfdeblend.data.scene import Scene
from tfdeblend.inference import priors


class StandIn:
    """Gives every source a Gaussian of flux 100; fails on scenes named "cursed"; notes what it sees; can be stopped."""

    done: list[str]
    interrupt_after: int | None
    meanwhile = staticmethod(lambda: None)  # what happens before each scene

    def __init__(self, *settings, **more):
        pass

    def iterate(self, scenes):
        for index, scene in enumerate(scenes):
            self.meanwhile()
            if len(self.done) == self.interrupt_after:
                os.kill(os.getpid(), signal.SIGTERM)
            if scene.name.startswith("cursed"):
                yield index, RuntimeError("did not converge\nat all")
                continue
            self.done.append(scene.name)
            shape = scene.observation.shape
            models = [np.stack([100 * gaussian(shape[1:], y, x, 2.0)] * shape[0]) for y, x in scene.positions]
            seen = replace(scene.observation, notes=(*scene.observation.notes, "the sky is bright"))
            yield index, result_of(Scene(seen, scene.sources), np.array(models, np.float32))


@pytest.fixture
def deblender(monkeypatch):
    StandIn.done, StandIn.interrupt_after, StandIn.meanwhile = [], None, staticmethod(lambda: None)
    monkeypatch.setitem(sys.modules, "tfdeblend.deblender", SimpleNamespace(Deblender=StandIn))
    return StandIn


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_scene(folder, name, seed=seed)
    return folder


def deblend(*args: object) -> int:
    return main(["deblend", *map(str, args)])


def test_writes_everything(deblender, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    assert deblend(scenes, "--out", out) == 0
    stems = {f"{name}.{suffix}" for name in "abc" for suffix in ("fits", "png")}
    assert {path.name for path in out.iterdir()} == stems | {"catalog.ecsv", "index.html"}
    catalog = Table.read(out / "catalog.ecsv")
    assert list(catalog["scene"]) == [name for name in "abc" for _ in range(3)]
    assert files.read(out / "a.fits").header["prior"] == "sersic"
    assert str(out / "catalog.ecsv") in capsys.readouterr().out


def test_page_stands_alone_and_no_text_can_break_it(deblender, scenes, tmp_path):
    out = tmp_path / "out"
    (scenes / "bad<script>.npz").write_bytes(b"nothing")
    assert deblend(scenes, "--out", out) == 1
    page = (out / "index.html").read_text()
    assert page.count("</script>") == 2 and "bad<script>" not in page
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert [scene["name"] for scene in data["scenes"]] == ["a", "b", "bad<script>", "c"]
    assert data["scenes"][0]["figure"].startswith("data:image/png;base64,")
    assert "http://" not in page and "https://" not in page


def test_json_is_one_document_on_stdout(deblender, scenes, tmp_path, capsys):
    assert deblend(scenes, "--out", tmp_path / "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"] == {"done": 3, "skipped": 0, "failed": 0}
    assert [scene["sources"] for scene in summary["scenes"]] == [3, 3, 3]
    assert all(scene["chi2"] > 0 for scene in summary["scenes"])


def test_second_run_does_only_what_is_missing(deblender, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    deblend(scenes / "a.npz", scenes / "b.npz", "--out", out)
    (out / "b.fits").write_bytes((out / "b.fits").read_bytes()[:5000])  # as a full disk leaves it
    deblender.done.clear()
    assert deblend(scenes, "--out", out, "--json") == 0
    assert deblender.done == ["b", "c"]
    assert json.loads(capsys.readouterr().out.split("\n", 4)[-1])["counts"] == {"done": 2, "skipped": 1, "failed": 0}
    assert len(Table.read(out / "catalog.ecsv")) == 9


def test_interrupted_run_keeps_what_is_done_and_goes_on(deblender, scenes, tmp_path, capsys):
    """Stopped by SIGTERM, as batch systems stop, which does as SIGINT; and what a killed process left is removed."""
    out = tmp_path / "out"
    deblender.interrupt_after = 2
    assert deblend(scenes, "--out", out) == 130
    assert "2 of 3 scenes are done" in capsys.readouterr().err
    assert sorted(path.name for path in out.glob("*.fits")) == ["a.fits", "b.fits"]
    deblender.interrupt_after = None
    assert deblend(scenes, "--out", out) == 0
    assert deblender.done == ["a", "b", "c"]


def test_what_killed_processes_left_is_removed(deblender, scenes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    dead, alive = 2**22 + 1, os.getppid()  # no process has a number as high
    left = [out / f".{process}-{name}" for process in (dead, alive) for name in ("a.fits", "notes.txt")]
    for path in left:
        path.touch()
    assert deblend(scenes, "--out", out, "--no-figures") == 0
    assert [path.exists() for path in left] == [False, True, True, True]


@pytest.mark.parametrize("change", ["replaced", "vanished", "replaced before"])
def test_results_belong_to_the_bytes_that_were_read(deblender, scenes, tmp_path, capsys, change, monkeypatch):
    """An input that changes after it was read leaves a result of the old one; before, it fails."""
    out = tmp_path / "out"

    def meanwhile():
        write_scene(scenes, "b", seed=7) if change == "replaced" else (scenes / "b.npz").unlink(missing_ok=True)

    if change == "replaced before":
        monkeypatch.setattr("tfdeblend.app.runs.CHUNK", 1)
        deblender.meanwhile = staticmethod(lambda: (scenes / "b.npz").write_bytes(b"PK no archive"))
        assert deblend(scenes, "--out", out, "--no-figures") == 1
        assert deblender.done == ["a", "c"]
        return
    deblender.meanwhile = staticmethod(meanwhile)
    assert deblend(scenes, "--out", out, "--no-figures") == 0
    assert deblender.done == ["a", "b", "c"]
    if change == "replaced":
        capsys.readouterr()
        assert deblend(scenes, "--out", out, "--no-figures") == 2
        assert "b.fits: INPUTSHA: expected a result of the same settings and input" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_costs_no_result(deblender, scenes, tmp_path, capsys, monkeypatch):
    """It is reported, also when the command is given again, until it is drawn."""
    from tfdeblend.plots import bitmap

    def broken(result, path):
        if result.scene.name == "b":
            raise RuntimeError("no ink")
        path.touch()

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(bitmap, "plot", broken)
        for counted in ("3 done", "3 skipped"):
            assert deblend(scenes, "--out", out) == 1
            said = capsys.readouterr()
            assert f"{scenes / 'b.npz'}: picture: RuntimeError: no ink" in said.err
            assert f"scenes: {counted}" in said.out
            assert len(Table.read(out / "catalog.ecsv")) == 9 and not (out / "b.png").exists()
            (failure,) = json.loads((out / "failures.json").read_text())
            assert failure["scene"] == "b" and failure["output"] == str(out / "b.fits")
    assert deblend(scenes, "--out", out) == 0
    assert (out / "b.png").exists() and not (out / "failures.json").exists()


def test_no_picture_of_an_earlier_result_is_left(deblender, scenes, tmp_path):
    out = tmp_path / "out"
    deblend(scenes, "--out", out)
    deblend(scenes, "--out", out, "--overwrite", "--no-figures")
    assert not list(out.glob("*.png"))


def test_a_full_disk_ends_the_run(deblender, scenes, tmp_path, capsys):
    """As a limit on the size of files, it stops NumPy, which writes for Astropy, in the midst of a file."""
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert deblend(scenes, "--out", out, "--quiet") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done, error = capsys.readouterr().err.splitlines()
    assert done == "tfdeblend: 0 of 3 scenes are done; give the same command to go on"
    assert error == f"tfdeblend: error: [Errno 28] No space left on device: '{out / 'a.fits'}'"
    assert deblender.done == ["a"] and not list(out.iterdir())


def test_a_changing_input_fails_alone(deblender, scenes, tmp_path, monkeypatch):
    read = Scene.from_catalog.__func__

    def changed(cls, observations, table):
        if observations[0].name == "b":
            write_scene(scenes, "b", seed=7)
        return read(cls, observations, table)

    monkeypatch.setattr(Scene, "from_catalog", classmethod(changed))
    assert deblend(scenes, "--out", tmp_path / "out", "--no-figures") == 1
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["error"].endswith("b.npz: file: expected one that stays as it is while it is read, received changes")


def test_notes_of_results_are_said_once_and_kept(deblender, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    assert deblend(scenes, "--out", out, "--no-figures") == 0
    assert capsys.readouterr().err.count("a, b, c: the sky is bright") == 1
    data = (out / "index.html").read_text().split('type="application/json">')[1].split("</script>")[0]
    assert [scene["notes"] for scene in json.loads(data)["scenes"]] == [["the sky is bright"]] * 3
    assert main(["info", str(out / "a.fits"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a"]["notes"] == ["the sky is bright"]


def test_a_deblender_that_stops_fails_what_is_left(deblender, scenes, tmp_path):
    def stop():
        if deblender.done == ["a"]:
            raise RuntimeError("out of order")

    deblender.meanwhile = staticmethod(stop)
    out = tmp_path / "out"
    assert deblend(scenes, "--out", out, "--no-figures") == 1
    failures = json.loads((out / "failures.json").read_text())
    assert [(one["scene"], one["error"].split(": ", 1)[1]) for one in failures] == [
        (name, "RuntimeError: out of order") for name in "bc"
    ]


@pytest.mark.parametrize("change", ["settings", "input"])
def test_results_of_something_else_are_refused_unless_overwritten(deblender, scenes, tmp_path, capsys, change):
    out = tmp_path / "out"
    deblend(scenes, "--out", out)
    if change == "input":
        write_scene(scenes, "b", seed=9)
    extra = ["--prior", "exponential"] if change == "settings" else []
    capsys.readouterr()
    assert deblend(scenes, "--out", out, *extra) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--overwrite" in message and change in message and ".fits" in message
    deblender.done.clear()
    assert deblend(scenes, "--out", out, "--overwrite", *extra) == 0
    assert deblender.done == ["a", "b", "c"]


def test_missing_pictures_of_earlier_results_are_drawn(deblender, scenes, tmp_path):
    out = tmp_path / "out"
    deblend(scenes, "--out", out, "--no-figures", "--no-report")
    assert not list(out.glob("*.png")) and not (out / "index.html").exists()
    deblender.done.clear()
    assert deblend(scenes, "--out", out) == 0
    assert len(list(out.glob("*.png"))) == 3 and deblender.done == []


def test_bad_scenes_among_good_ones_are_reported_and_the_others_done(deblender, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    write_scene(scenes, "cursed", seed=5)
    np.savez(scenes / "broken.npz", images=np.ones((5, 20, 20)), weights=np.ones((20, 21)))
    assert deblend(scenes, "--out", out) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "broken.npz" in line]
    assert len(lines) == 1
    failures = {failure["scene"]: failure for failure in json.loads((out / "failures.json").read_text())}
    assert set(failures) == {"broken", "cursed"}
    assert failures["cursed"]["error"].endswith("did not converge at all")
    assert set(Table.read(out / "catalog.ecsv")["scene"]) == set("abc")
    for name in failures:
        (scenes / f"{name}.npz").unlink()
    assert deblend(scenes, "--out", out) == 0
    assert not (out / "failures.json").exists()


def test_catalogues_beside_the_scenes_take_the_place_of_their_own(deblender, scenes, tmp_path):
    """One file for one scene, a folder for several; one that is missing fails its scene alone."""
    (tmp_path / "sources").mkdir()
    for name in "ab":
        Table({"x": [20.0], "y": [10.0], "id": [name]}).write(tmp_path / "sources" / f"{name}.csv")
    one, several = tmp_path / "one", tmp_path / "several"
    assert deblend(scenes / "a.npz", "--catalog", tmp_path / "sources" / "a.csv", "--out", one) == 0
    assert deblend(scenes, "--catalog", tmp_path / "sources", "--out", several) == 1
    assert list(Table.read(one / "catalog.ecsv")["id"]) == ["a"]
    assert list(Table.read(several / "catalog.ecsv")["id"]) == ["a", "b"]
    (failure,) = json.loads((several / "failures.json").read_text())
    assert "c.ecsv: file: expected a catalogue" in failure["error"]


@pytest.mark.parametrize("case", ["nothing", "missing", "all bad", "out is a file"])
def test_bad_input_exits_with_2_and_one_line(deblender, scenes, tmp_path, capsys, case):
    out, inputs = tmp_path / "out", tmp_path / "other"
    inputs.mkdir()
    if case == "missing":
        inputs = tmp_path / "missing.npz"
    elif case == "all bad":
        (inputs / "x.npz").write_bytes(b"not a scene")
    elif case == "out is a file":
        inputs = scenes
        out.write_text("")
    assert deblend(inputs, "--out", out) == 2
    assert "tfdeblend: error: " in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.is_dir()


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["deblend"],
        ["deblend", "x"],
        ["deblend", "x", "--out", ""],
        ["deblend", "x", "--out", "y", "--method", "z"],
        ["deblend", "x", "--out", "y", "--optimizer", "z"],
        ["nonsense"],
    ],
)
def test_bad_usage_exits_with_2(args):
    with pytest.raises(SystemExit) as leaving:
        main(args)
    assert leaving.value.code == 2


@pytest.mark.parametrize("form", ["ecsv", "parquet", "fits"])
def test_catalogue_formats(deblender, scenes, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    assert deblend(scenes, "--out", tmp_path / "out", "--catalog-format", form) == 0
    path = tmp_path / "out" / f"catalog.{form}"
    if form == "parquet":  # astropy would need pandas to read it
        assert pytest.importorskip("pyarrow.parquet").read_table(path).num_rows == 9
    else:
        assert len(Table.read(path)) == 9


def test_parquet_without_pyarrow_is_refused_before_the_work(deblender, scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tfdeblend.app.commands.find_spec", lambda name: None)
    assert deblend(scenes, "--out", tmp_path / "out", "--catalog-format", "parquet") == 2
    assert "pyarrow" in capsys.readouterr().err and deblender.done == []


def test_quiet_says_nothing_but_results(deblender, scenes, tmp_path, capsys):
    deblend(scenes, "--out", tmp_path / "out", "--quiet")
    assert capsys.readouterr().err == ""


def test_detect_finds_the_sources(scenes, tmp_path, capsys):
    assert main(["detect", str(scenes / "a.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scenes"]["a"]
    assert found and {"x", "y"} <= set(found[0])
    assert main(["detect", str(scenes), "--out", str(tmp_path / "found.ecsv")]) == 0
    assert set(Table.read(tmp_path / "found.ecsv")["scene"]) == set("abc")


def test_measure_reads_results_and_writes_one_catalogue(tmp_path, capsys, monkeypatch):
    measure = SimpleNamespace(remeasure=lambda deblended: deblended.catalog[["id", "snr"]])
    monkeypatch.setitem(sys.modules, "tfdeblend.catalog.measure", measure)
    for name in "ab":
        files.write(make_deblended(name=name), tmp_path / f"{name}.fits")
    assert main(["measure", str(tmp_path / "*.fits"), "--out", str(tmp_path / "again.ecsv")]) == 0
    assert Table.read(tmp_path / "again.ecsv").colnames == ["scene", "id", "snr"]
    (tmp_path / "c.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:20000])
    assert main(["measure", str(tmp_path / "*.fits"), "--json"]) == 1
    printed = capsys.readouterr()
    assert "c.fits" in printed.err
    assert [len(rows) for rows in json.loads(printed.out.split("\n", 1)[1])["scenes"].values()] == [3, 3]


def test_plot_draws_saved_results(tmp_path, capsys):
    files.write(make_deblended(), tmp_path / "blend.fits")
    (tmp_path / "bad.fits").write_bytes(b"")
    assert main(["plot", str(tmp_path / "*.fits"), "--out", str(tmp_path / "pictures")]) == 1
    assert (tmp_path / "pictures" / "blend.png").exists()
    assert "bad.fits" in capsys.readouterr().err


def test_info_describes_scenes_and_results(scenes, tmp_path, capsys):
    files.write(make_deblended(), tmp_path / "blend.fits")
    assert main(["info", str(scenes / "a.npz"), str(tmp_path / "blend.fits"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["a"]["content"] == "scene" and found["blend"]["content"] == "result"
    for document in found.values():
        assert document["shape"] == [5, 40, 50] and document["sources"] == 3
        assert document["noise"] == [1.0] * 5 and document["masked"] == pytest.approx(6 * 8 / 2000)
        np.testing.assert_allclose(document["psf_fwhm"], 1.5 * 2.3548, rtol=0.01)


def test_archives_cut_short_and_scenes_in_place_of_results_are_reported_in_one_line(scenes, tmp_path, capsys):
    whole = scenes / "a.npz"
    short = tmp_path / "short.npz"
    short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for command in (["info", str(short)], ["measure", str(whole)]):
        assert main(command) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_info_lists_versions_and_priors(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["numpy"] == np.__version__
    assert set(found["priors"]) == set(priors.names())


def test_mask_planes_are_names_or_bits():
    args = build_parser().parse_args(["deblend", "x.npz", "--mask-planes", "BAD,3", "--out", "y"])
    assert args.mask_planes == ("BAD", 3) and args.inputs == ["x.npz"]


@pytest.mark.parametrize("seed", ["-1", str(2**31)])
def test_seeds_out_of_range_are_refused(seed: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["deblend", "a.npz", "--out", "b", "--seed", seed])
    assert stop.value.code == 2 and f"expected 0 to {2**31 - 1}, received {seed}" in capsys.readouterr().err
