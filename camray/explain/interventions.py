"""What is changed in an image to see whether the answer hangs on it: pure functions of tensors.

Images are x (B, 3, H, W) in 0..1; masks (B, 1, H, W) or (1, 1, H, W), true where something is taken away.
`INTERVENTIONS` names them. A forward of the changed image is a *look*: those called `carry` ask whether
pixels are enough for the answer (of another image), the others whether it can do without what they take away.
What surrounds is carried upside down: a background stays what it is, the ends of an object do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

HOT = 0.05  # share of the pixels
RING = 1 / 16  # of each side: where frames are
RIM = 1 / 4  # of each side: a sticker in a corner lies in it whole
SURROUND = 3 / 16  # of each side: where backgrounds are
NOISE = 0.03  # standard deviation
BINS = 16  # of the radial spectrum
CLOSE = (1 / 4, 1 / 10, 1 / 30)  # of the shorter side: how far around a small hole it is filled from
ENDS = (0.02, 0.98)  # of the values of a channel: where it begins and ends
MOST_GAIN = 8.0  # of a channel that is nearly flat

INTERVENTIONS = {  # name -> what an answer hangs on that falls with it
    "fill": "a place", "thing": "a place", "carry": "a place", "border": "the border",
    "carry_rim": "the border", "surround": "the background", "carry_surround": "the background",
    "frame": "a frame", "levels": "colour or contrast", "carry_levels": "colour or contrast",
    "detail": "texture", "noise": "texture",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typical:
    """How images of the archive are on average: levels (2, 3), log amplitudes by frequency (BINS,)."""

    levels: Tensor
    spectrum: Tensor

    @staticmethod
    def of(x: Tensor) -> Typical:
        """Take the mean of images (B, 3, H, W)."""
        return Typical(levels(x).mean(0), spectrum(x).mean(0))


def hottest(maps: Tensor, size: tuple[int, int], share: float = HOT) -> Tensor:
    """Mark the hottest share of the pixels of maps (B, h, w), at an input's size: (B, 1, H, W).

    A share, not a threshold: of a spread and of a narrow map as much is taken away, if there is heat at all.
    """
    heat = interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False).flatten(1)
    count = max(1, round(share * heat.shape[1]))
    chosen = torch.zeros_like(heat, dtype=torch.bool)
    chosen.scatter_(1, heat.topk(count, dim=1).indices, torch.ones_like(heat, dtype=torch.bool))
    return (chosen & (heat > 0)).view(len(maps), 1, *size)


def hot_border(maps: Tensor, size: tuple[int, int], share: float = 1 / 8) -> Tensor:
    """Mark the outer eighth of the sides where a map is hotter than its mean: (B, 1, H, W)."""
    heat = interpolate(maps[:, None].float().clamp(min=0), size, mode="bilinear", align_corners=False)
    return (heat > heat.mean(dim=(2, 3), keepdim=True)) & ring(size, share).to(heat.device)


def ring(size: tuple[int, int], share: float = RING) -> Tensor:
    """Mark a share of each side, at least one pixel, along all edges: (1, 1, H, W)."""
    marked = torch.ones(1, 1, *size, dtype=torch.bool)
    down, across = (max(1, round(share * n)) for n in size)
    marked[:, :, down : size[0] - down, across : size[1] - across] = False
    return marked


def filled(x: Tensor, hole: Tensor, reach: Sequence[float] = (1 / 4, 1 / 10)) -> Tensor:
    """Fill a hole from around by normalised convolution (Knutsson and Westin 1993).

    A blur keeps the blob of colour that a sticker is, and the answer with it; this removes it. The Gaussian
    has the last of `reach`, shares of the shorter side; where that finds nothing the one before.
    """
    known = (~hole).to(x.dtype).expand(len(x), 1, *x.shape[2:])
    found = x * known
    level = found.sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    guess = level.expand_as(x)
    for sigma in (min(x.shape[2:]) * share for share in reach):
        weight = smoothed(known, sigma)
        guess = torch.where(weight > 1e-3, smoothed(found, sigma) / weight.clamp(min=1e-6), guess)
    return torch.where(hole, guess, x)


def carried(x: Tensor, mask: Tensor, hosts: Tensor) -> Tensor:
    """Paste what is under a mask at the same place into other images.

    A feature is spurious only if its presence alone triggers the class (Neuhaus et al. 2022).
    """
    return torch.where(mask, x, hosts)


def levelled(x: Tensor, target: Tensor) -> Tensor:
    """Set where each channel begins and ends to (2, 3) or (B, 2, 3): takes a tint or a contrast away.

    Balancing of colours by quantiles (Limare et al. 2011), towards the archive instead of black and white.
    """
    low, high = levels(x).unbind(1)
    begin, end = target.expand(len(x), 2, 3).unbind(1)
    gain = ((end - begin) / (high - low).clamp(min=1e-3)).clamp(max=MOST_GAIN)
    return ((x - low[..., None, None]) * gain[..., None, None] + begin[..., None, None]).clamp(0, 1)


def restyled(x: Tensor, target: Tensor) -> Tensor:
    """Set the radial log amplitudes (BINS,) or (B, BINS) of the spectrum; mean and phase stay.

    Amplitude is style, phase is content (Yang and Soatto 2020): takes away blur, low resolution, grain.
    """
    bins = _frequency_bins(x.shape[2], x.shape[3], x.device)
    gain = (target - spectrum(x)).exp()[:, bins]  # (B, H, W)
    gain[:, 0, 0] = 1.0
    styled: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * gain[:, None]).real.clamp(0, 1)
    return styled


def noisy(x: Tensor) -> Tensor:
    """Add Gaussian noise, the same to every image: drowns block edges and fine traces of compression."""
    chance = torch.Generator().manual_seed(0)
    return (x + NOISE * torch.randn(x.shape[1:], generator=chance).to(x.device)).clamp(0, 1)


def levels(x: Tensor) -> Tensor:
    """Give the values below which 2 % and 98 % of each channel lie: (B, 2, 3)."""
    flat = x.flatten(2)
    places = [max(1, round(share * flat.shape[2])) for share in ENDS]
    return torch.stack([flat.kthvalue(place, 2).values for place in places], 1)


def spectrum(x: Tensor) -> Tensor:
    """Give the mean log amplitude in rings of equal frequency, over the channels: (B, BINS)."""
    log: Tensor = torch.fft.fft2(x).abs().clamp(min=1e-3).log().mean(1).flatten(1)  # (B, H W)
    bins = _frequency_bins(x.shape[2], x.shape[3], x.device).flatten()
    sums = torch.zeros(len(x), BINS, device=x.device).index_add_(1, bins, log)
    mean: Tensor = sums / torch.bincount(bins, minlength=BINS).clamp(min=1)
    return mean


def _frequency_bins(height: int, width: int, device: torch.device) -> Tensor:
    """Give the ring of each frequency, 0 the lowest: (H, W)."""
    y, x = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = (y[:, None] ** 2 + x[None, :] ** 2).sqrt() / math.sqrt(0.5)
    rings: Tensor = (radius * BINS).long().clamp(max=BINS - 1).to(device)
    return rings


def smoothed(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) with a Gaussian; beyond the edges is nothing."""
    radius = min(math.ceil(3 * sigma), max(x.shape[2:]) - 1)
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    channels = x.shape[1]
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    x = conv2d(pad(x, (radius, radius, 0, 0)), weights, groups=channels)
    return conv2d(pad(x, (0, 0, radius, radius)), weights.mT, groups=channels)


def changed(name: str, x: Tensor, maps: Tensor, typical: Typical, hosts: Tensor) -> Tensor:
    """Apply the intervention of this name to x (B, 3, H, W), explained by maps (B, h, w); hosts like x.

    Of `thing` the maps mark it, at any size.
    """
    size = (x.shape[2], x.shape[3])
    around, hot = ring(size, SURROUND).to(x.device), hottest(maps, size)
    does = {
        "fill": lambda: filled(x, hot), "carry": lambda: carried(x, hot, hosts),
        "thing": lambda: filled(x, interpolate(maps[:, None], size) > 0, CLOSE),
        "border": lambda: filled(x, hot_border(maps, size)),
        "carry_rim": lambda: carried(x, hot_border(maps, size, RIM), hosts),
        "surround": lambda: carried(hosts, around, x),
        "carry_surround": lambda: carried(x.flip(2), around, hosts),
        "frame": lambda: filled(x, ring(size).to(x.device)),
        "levels": lambda: levelled(x, typical.levels), "carry_levels": lambda: levelled(hosts, levels(x)),
        "detail": lambda: restyled(x, typical.spectrum), "noise": lambda: noisy(x),
    }  # fmt: skip
    return does[name]()
