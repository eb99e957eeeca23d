"""Writes models for a model server: BASE/<model>/<version>/, whole or not at all.

tfdeblend export --prior hsc-grizy-64 --side 32 --sources 4 --out BASE
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf

from tfdeblend.diffusion import registry
from tfdeblend.export import warmup
from tfdeblend.export.bucket import SAMPLES, STEPS, Bucket
from tfdeblend.export.layout import versions
from tfdeblend.export.signatures import Concrete, Inference
from tfdeblend.version import __version__

DEFAULT = "map"  # the signature that is called where a request names none


def write(bucket: Bucket, base: Path, version: int | None = None) -> Path:
    """Exports a bucket; returns the version's folder.

    Args:
      version: None: one more than the last.

    Raises: FileExistsError where that version is there.
    """
    model = base / bucket.name
    version = max(versions(model), default=0) + 1 if version is None else version
    target = model / str(version)
    if target.exists():
        raise FileExistsError(f"expected a version that is not there yet, received {target}")
    model.mkdir(parents=True, exist_ok=True)
    inference = Inference(bucket)
    signatures = inference.signatures()
    with tempfile.TemporaryDirectory(dir=base, prefix=".export-") as folder:
        made = Path(folder) / "version"
        _save(made, bucket, inference.weights, signatures | {"serving_default": signatures[DEFAULT]}, Path(folder))
        os.chmod(made, 0o755)
        made.rename(target)
    return target


def _save(
    made: Path, bucket: Bucket, weights: list[tf.Variable], signatures: dict[str, Concrete], scratch: Path
) -> None:
    module = tf.Module()
    module.weights = weights
    module.assets = [tf.saved_model.Asset(str(path)) for path in _assets(bucket, scratch)]
    tf.saved_model.save(module, str(made), signatures=signatures)
    warmup.write(made, bucket, signatures)


def _assets(bucket: Bucket, scratch: Path) -> list[Path]:
    """The configuration, a card for people, and the learned prior's own card."""
    config = scratch / "config.json"
    facts = asdict(bucket) | {"name": bucket.name, "version": __version__, "shape": bucket.shape._asdict()}
    if bucket.is_learned:
        facts |= {"samples": SAMPLES, "steps": STEPS, "prior": registry.find(bucket.prior).name}
    config.write_text(json.dumps(facts, indent=2) + "\n")
    card = scratch / "model_card.md"
    card.write_text(_card(bucket))
    made = [config, card]
    if bucket.prior in registry.shipped():
        made.append(Path(shutil.copy(registry.FOLDER / f"{bucket.prior}.json", scratch / "prior.json")))
    return made


def _card(bucket: Bucket) -> str:
    """What the model is for, and what not to believe."""
    if bucket.is_learned:
        prior = registry.find(bucket.prior)
        what = f"galaxies as the learned prior {prior.name} knows them: {prior.description or 'a prior of your own'}"
        limits = f"Pixels of {prior.pixel_scale:g} arcsec to 3%, PSFs wider than sigma {prior.model_sigma:g} pixel."
    else:
        what = f"galaxies of the closed-form prior {bucket.prior}"
        limits = "PSFs wider than a Gaussian of sigma one pixel."
    return f"""# {bucket.name}

Takes blends of up to {bucket.sources} sources apart, on images of up to {bucket.side} pixels a side in the bands
{", ".join(bucket.bands or ())}, made by tfdeblend {__version__}: {what}.

Limits: {limits} Errors of `map` are those of a Gaussian about the closed-form maximum; noise is taken to be independent
from pixel to pixel. Sources must be declared: detection is the client's. Blends whose output `usable` is false were
refused for their numbers, and all their values are NaN.
"""
