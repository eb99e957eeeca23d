"""One command for the whole benchmark: `python -m benchmarks --work DIR --catalog catsim_sample.fits`.

Makes the peers' environments, draws the scenes, runs the peers, then ours, and writes `DIR/<survey>.json` beside the
printed table. What is there already is kept, so that an interrupted run goes on; a peer that cannot be installed is
a row in which every scene failed, and standard error says why.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import catsim, environments

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TFDEBLEND_DATA", HERE.parent.parent / "shared" / "data"))

OURS = ["nonparametric", "sersic", "auto"]


def draw(python: Path, catalog: Path, out: Path, survey: str, number: int, seed: int) -> None:
    """Draw the scenes by the Blending ToolKit, unless `out` holds as many."""
    if len(list(out.glob("*.npz"))) < number:
        options = ["--catalog", catalog, "--out", out, "--survey", survey, "--n", number, "--seed", seed]
        subprocess.run([str(word) for word in [python, HERE / "draw_catsim.py", *options]], check=True)


def run_peer(name: str, folder: Path, scenes: Path, out: Path) -> None:
    """Let peer `name` answer the scenes that have no answer yet; say so when it cannot."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        python = environments.create(name, folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return
    script = HERE / f"run_{name}.py"
    subprocess.run([str(word) for word in [python, script, "--scenes", scenes, "--out", out]], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("bench"), help="folder for everything made (default bench)")
    parser.add_argument("--catalog", type=Path, default=DATA / "catsim_sample.fits", help="FITS table of galaxies")
    parser.add_argument("--survey", default="HSC")
    parser.add_argument("--n", type=int, default=64, help="number of blends (default 64)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prior", nargs="*", default=OURS, help=f"priors of ours to run (default {' '.join(OURS)})")
    parser.add_argument("--peer", nargs="*", default=["scarlet2"], choices=["scarlet2"], help="peers to run")
    args = parser.parse_args()
    name = f"{args.survey.lower()}_{args.seed}"
    scenes, places = args.work / "scenes" / name, args.work / "environments"
    draw(environments.create("btk", places), args.catalog, scenes, args.survey, args.n, args.seed)
    answers = {peer: args.work / "answers" / peer / name for peer in args.peer}
    for peer, out in answers.items():
        run_peer(peer, places, scenes, out)
    peers = [f"{peer}={out}" for peer, out in answers.items()]
    report = ["--json", str(args.work / f"{name}.json"), "--limit", str(args.n), "--warm"]
    catsim.main(["--scenes", str(scenes), "--prior", *args.prior, "--peer", *peers, *report])


if __name__ == "__main__":
    main()
