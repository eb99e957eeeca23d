"""The U-Net of `tfdeblend.networks` in PyTorch, channels last, timed: run by `unet_speed` in an environment of its own.

Prints one line of JSON: seconds a batch, the best of several, and the number of parameters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + conv(silu(modulate(conv(silu(normalize(x))))))."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.affine = nn.Linear(embedding, 2 * width)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        h = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.scale[:, None, None]
        h = self.first(F.silu(h))
        a, b = self.affine(vector)[..., None, None].chunk(2, 1)
        return x + self.second(F.silu(h * (1 + a) + b))


class UNet(nn.Module):
    """See `tfdeblend.networks.UNet` (gated, patch 2); images are [B, C, P, P] in channels-last memory."""

    def __init__(self, side: int, channels: int, widths: list[int], embedding: int = 64):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(math.log10(0.25), math.log10(4), 16))
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem, self.place = nn.Conv2d(channels, widths[0], 4, 2, 1), nn.Conv2d(widths[0] + 3, widths[0], 1)
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList([nn.Conv2d(a, b, 2, 2) for a, b in pairs])
        self.ups = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in pairs])
        self.down_blocks = nn.ModuleList([Block(width, embedding) for width in widths[1:]])
        self.up_blocks = nn.ModuleList([Block(width, embedding) for width in widths])
        self.head = nn.Conv2d(widths[0], 2 * channels * 4, 3, padding=1)
        axis = torch.arange(side // 2) * 4 / side - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("grid", torch.stack([y, x, torch.hypot(y, x)])[None])

    def forward(self, image: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        angle = number[:, None] * self.frequencies
        vector = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        x = self.stem(image)
        x = self.place(torch.cat([x, self.grid.expand(len(x), -1, -1, -1)], 1))
        skips = [x]
        for down, block in zip(self.downs, self.down_blocks, strict=True):
            x = block(down(x), vector)
            skips.append(x)
        x = self.up_blocks[-1](skips.pop(), vector)
        for up, block in reversed(list(zip(self.ups, self.up_blocks[:-1], strict=True))):
            x = block(skips.pop() + F.interpolate(up(x), scale_factor=2), vector)
        addition, gate = F.pixel_shuffle(self.head(F.silu(x)), 2).chunk(2, 1)
        return addition + gate * image


def best(function, repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("side", "channels", "batch", "threads", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = UNet(args.side, args.channels, args.widths).to(memory_format=torch.channels_last)
    x = torch.randn(args.batch, args.channels, args.side, args.side).to(memory_format=torch.channels_last)
    number = torch.randn(args.batch)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def forward() -> None:
        with torch.inference_mode():
            net(x, number)

    def input_gradient() -> None:
        for p in net.parameters():
            p.requires_grad_(False)
        z = x.detach().requires_grad_()
        torch.autograd.grad(net(z, number).square().mean(), z)
        for p in net.parameters():
            p.requires_grad_(True)

    def train() -> None:
        optimizer.zero_grad()
        (net(x, number) - x).square().mean().backward()
        optimizer.step()

    tasks = {"forward": forward, "input_gradient": input_gradient, "training": train}
    result = {name: best(task, args.repeats) for name, task in tasks.items()}
    parameters = sum(p.numel() for p in net.parameters())
    print(json.dumps({"version": torch.__version__, "parameters": parameters, **result}))


if __name__ == "__main__":
    main()
