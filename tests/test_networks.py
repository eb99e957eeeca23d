"""The U-Net: any bands, any side, one architecture; saved and loaded to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfdeblend.networks import Coordinates, ToPixels, UNet

SMALL = {"widths": (8, 16), "blocks": (1, 1), "embedding": 8, "output_scale": 1.0}


def images(side: int, channels: int, number: int = 2) -> np.ndarray:
    return np.random.default_rng(side + channels).standard_normal((number, side, side, channels)).astype("float32")


def stir(net: keras.Model) -> None:
    """Away from the start, where residual blocks do nothing."""
    rng = np.random.default_rng(0)
    net.set_weights([w + 0.1 * rng.standard_normal(w.shape).astype("float32") for w in net.get_weights()])


LEVELS = np.array([-1.0, 0.5], "float32")


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(("side", "patch"), [(32, 1), (32, 2), (64, 2), (128, 4)])
def test_any_bands_and_side(side: int, patch: int, channels: int):
    x = images(side, channels)
    net = UNet(side, channels, channels, patch=patch, gated=True, **SMALL)
    stir(net)
    out = keras.ops.convert_to_numpy(net((x, LEVELS)))
    assert out.shape == x.shape
    alone = keras.ops.convert_to_numpy(net((x[1:], LEVELS[1:])))  # no image sees its neighbours
    np.testing.assert_allclose(out[1:], alone, atol=1e-5 * np.abs(out).max())
    other = keras.ops.convert_to_numpy(net((x, LEVELS[::-1].copy())))
    assert np.abs(other - out).max() > 1e-3 * np.abs(out).max()  # conditioned on the number


def test_weights_do_not_depend_on_the_side():
    small, large = (UNet(side, 3, 3, **SMALL) for side in (32, 64))
    large.set_weights(small.get_weights())


def test_starts_at_zero_where_asked():
    net = UNet(32, 3, 3, widths=(8, 16), blocks=(1, 1), gated=True)
    assert np.abs(keras.ops.convert_to_numpy(net((images(32, 3), LEVELS)))).max() < 1e-6


def test_round_trip_is_bit_identical(tmp_path):
    net = UNet(32, 2, 6, patch=2, head_kernel=1, **SMALL)
    net.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    assert again.get_config() == net.get_config()
    x = images(32, 2)
    first, second = (keras.ops.convert_to_numpy(n((x, LEVELS))) for n in (net, again))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 36}, "multiple of 8, received 36"),
        ({"blocks": (1,)}, r"as many blocks as widths \(3\), received 1"),
        ({"gated": True, "outputs": 2}, r"as many outputs as channels \(3\) of a gated U-Net, received 2"),
        ({"widths": (8, 8, 9999)}, "at most 67108864 weights, received one of 3"),
        ({"side": 2**20}, "images of at most 67108864 numbers"),
        ({"blocks": (1, 1, 10**9)}, "at most 256 blocks"),
    ],
)
def test_refuses_what_does_not_fit(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UNet(**{"side": 32, "channels": 3, "outputs": 3, "widths": (8, 8, 8), "blocks": (1, 1, 1), **arguments})


def test_to_pixels_is_depth_to_space():
    x = np.arange(2 * 3 * 3 * 8, dtype="float32").reshape(2, 3, 3, 8)
    out = keras.ops.convert_to_numpy(ToPixels(2)(x))
    np.testing.assert_array_equal(out[:, 2, 5], x[:, 1, 2, 2:4])  # row 0, column 1 of the patch at (1, 2)
    assert out.shape == (2, 6, 6, 2)


def test_coordinates_are_zero_at_the_centre():
    out = keras.ops.convert_to_numpy(Coordinates()(np.zeros((1, 8, 8, 1), "float32")))
    np.testing.assert_array_equal(out[0, 4, 4], 0)
    np.testing.assert_allclose(out[0, 0, 4], [0, -1, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend: str):
    pytest.importorskip(backend)
    code = (
        "import numpy as np; from tfdeblend.networks import UNet; "
        "net = UNet(32, 2, 2, widths=(8, 16), blocks=(1, 1), gated=True); net.compile('adam', 'mse'); "
        "x = np.ones((8, 32, 32, 2), 'float32'); net.fit((x, np.ones(8, 'float32')), x, epochs=2, verbose=0)"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
