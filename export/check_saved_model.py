"""Proves that exported models can be served: every proof in its own process, a table of figures, 1 where one fails.

python -m tfdeblend.export.check_saved_model BASE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tfdeblend.export.layout import versions

PROOFS = ("alone", "c_api", "openvino_run", "configuration")
FOLDER = Path(__file__).parent / "proofs"


def check(folder: Path, proofs: tuple[str, ...] = PROOFS) -> bool:
    """Whether a version passes; prints a line a figure."""
    print(f"{folder}")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        good = _run("reference", folder, work)
        return good and all([_run(proof, folder, work) for proof in proofs])


def _run(proof: str, folder: Path, work: Path) -> bool:
    # Alone means alone: a script, where no package of this project is looked for.
    script = [str(FOLDER / "alone.py")] if proof == "alone" else ["-m", f"tfdeblend.export.proofs.{proof}"]
    command = [sys.executable, *script, str(folder.resolve()), str(work)]
    began = time.perf_counter()
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        _show(line)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"  FAILED   {proof}: expected it to end, received exit code {done.returncode}: {reason[:300]}")
    print(f"           {proof}: {time.perf_counter() - began:.0f} s", flush=True)
    return done.returncode == 0 and all(line["good"] for line in lines)


def _show(line: dict) -> None:
    state = "skipped" if line["skipped"] else "ok" if line["good"] else "FAILED"
    figure = line["figure"] if isinstance(line["figure"], str) else f"{line['figure']:.3g}"
    text = line["skipped"] or (figure if line["limit"] is None else f"{figure} <= {line['limit']:g}")
    print(f"  {state:8} {line['proof']}: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    program = "python -m tfdeblend.export.check_saved_model"
    parser = argparse.ArgumentParser(prog=program, description=str(__doc__).split("\n")[0])
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of models; the newest version of each")
    parser.add_argument("--proof", action="append", choices=PROOFS, help="only this one; may be repeated")
    args = parser.parse_args(argv)
    models = [path for path in sorted(args.base.iterdir()) if versions(path)] if args.base.is_dir() else []
    if not models:
        print(f"check_saved_model: error: expected a folder of models, received {args.base}", file=sys.stderr)
        return 2
    proofs = tuple(args.proof or PROOFS)
    return 0 if all([check(path / str(versions(path)[-1]), proofs) for path in models]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
