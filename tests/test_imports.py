"""Modules build on each other in one direction, and the light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfdeblend

PACKAGE = Path(tfdeblend.__file__).parent

# Each module may import those before it.
LAYERS = (
    "version errors surveys colors rendering galaxies real_galaxies stamps checks correlation observation scene "
    "simulation deblended detection io records shards simulated_files production batch operators views noise resample "
    "likelihood exposures joint_detection joint_likelihood profiles priors fluxes gauss_newton galaxy_posterior "
    "optimize initialize mapfit nonparametric schedules networks covariance denoisers heads rescaled centres gaussian "
    "generate datasets linear_gaussian draws posterior samplers seeded scorefit evidence sampling learned flags "
    "measure populations metrics sampled nuts sample_batches assembly buckets deblender joint_sampling joint_deblended "
    "joint transient_fit transients dust em transport serving plots sample_plots report describe runs field "
    "options commands cli"
).split()

# What constructors of early types call on when they are called: Observation.read, Scene.read, Scene.detect
# and the like.
LATE = {("observation", "io"), ("observation", "detection"), ("scene", "io"), ("scene", "detection")}


def sources(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, but for type checking."""
    depth = len(path.relative_to(PACKAGE).parts)  # how many dots lead to the package
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            ours = node.level == depth or (node.level == 0 and (node.module or "").split(".")[0] == "tfdeblend")
            module = (node.module or "").removeprefix("tfdeblend").strip(".")
            if ours:
                yield from [module.split(".")[0]] if module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tfdeblend."))


def test_every_module_has_a_layer():
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert modules - {"__init__", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("module", LAYERS)
def test_imports_only_go_up(module: str):
    allowed = {*LAYERS[: LAYERS.index(module) + 1], "__version__"}
    for path in sources(module):
        wrong = {name for name in imports(path) if name not in allowed and (module, name) not in LATE}
        assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("code", ["import tfdeblend", "import tfdeblend.cli as c; c.build_parser().format_help()"])
def test_light_to_start(code: str):
    heavy = "{'tensorflow', 'keras', 'astropy', 'matplotlib', 'sep', 'galsim', 'numpy'}"
    check = f"import sys; {code}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_result_types_need_no_tensorflow():
    light = "import tfdeblend, tfdeblend.runs, tfdeblend.plots; tfdeblend.Deblended"
    check = f"import sys; {light}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_complete():
    assert set(tfdeblend.__all__) <= set(dir(tfdeblend))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tfdeblend.nonsense
