"""azula's MMPS and DPS with a network of ours in PyTorch: run by `sampling_speed` in an environment of its own.

A batch of stamps, each seen alone through a PSF; weights are random, as only the time counts. Prints one line of JSON:
seconds a sample by method, and the version.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json

import torch
from azula.denoise import SimpleDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.noise import VESchedule
from azula.sample import DDPMSampler
from torch import nn
from torch_unet import UNet, best

PSF_SIGMA, NOISE = 2.0, 0.1


class Backbone(nn.Module):
    """The U-Net as azula calls it: one time for the whole batch."""

    def __init__(self, net: UNet):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x, t.expand(len(x)))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("side", "channels", "batch", "threads", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = UNet(args.side, args.channels, args.widths).to(memory_format=torch.channels_last).requires_grad_(False)
    denoiser = SimpleDenoiser(Backbone(net), VESchedule())
    frequency = torch.fft.fftfreq(args.side)[:, None] ** 2 + torch.fft.rfftfreq(args.side)[None] ** 2
    transfer = torch.exp(-2 * (torch.pi * PSF_SIGMA) ** 2 * frequency)

    def observe(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])

    start = torch.randn(args.batch, args.channels, args.side, args.side).to(memory_format=torch.channels_last)
    data = observe(torch.rand_like(start))
    noise = IsotropicCovariance(torch.tensor(NOISE**2))
    samplers = {"dps": DPSSampler(denoiser, data, observe, steps=args.steps, silent=True)}
    for iterations in (1, 5):
        guided = MMPSDenoiser(denoiser, data, observe, noise, iterations=iterations)
        samplers[f"mmps-{iterations}"] = DDPMSampler(guided, steps=args.steps, silent=True)
    seconds = {name: best(lambda sampler=sampler: sampler(start), 2) / args.batch for name, sampler in samplers.items()}
    print(json.dumps({"version": importlib.metadata.version("azula"), **seconds}))


if __name__ == "__main__":
    main()
