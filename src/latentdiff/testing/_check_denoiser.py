"""The contract of a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff._checks import like
from latentdiff._denoised import Denoise, Denoised
from latentdiff._typing import Latents
from latentdiff.testing._checking import require, require_close


def check_denoiser(denoiser: Denoise, x: Latents, condition: object = None, *, tolerance: float = 1e-4) -> None:
    """Require what every denoiser promises: a model, a guidance, a closed form.

    Over the times of its schedule, the last one and the least trained one (t = 0) among them: both estimates are
    finite, shaped and typed like `x`, and `alpha * sample + sigma * noise` is `x` again; a number, one time for all and
    a time for each give the same; a sample does not depend on its neighbours; the same input gives the same answer and
    is not written to.

    Args:
        denoiser: Anything with a `schedule` and `__call__`; a module in evaluation mode.
        x: `[batch, channels, *spatial]`, two samples or more, of about unit size.
        condition: What the denoiser takes, for this batch.
        tolerance: Of parts of `x`, in units of its largest value: rounding of the network's dtype.

    Raises:
        AssertionError: If it does not, saying what.
        ValueError: If `x` holds fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"x must hold two samples or more, got {list(x.shape)}")
    last = denoiser.schedule.num_timesteps - 1.0
    with torch.no_grad():
        for t in sorted({0.0, last / 3, (2 * last) // 3, last}):
            _check_time(denoiser, x, t, condition, tolerance)
        _check_mixed_times(denoiser, x, condition, tolerance)


def _check_time(denoiser: Denoise, x: Latents, t: float, condition: object, tolerance: float) -> None:
    name, kept = f"{denoiser} at t = {t:g}", x.clone()
    denoised = denoiser(x, t, condition)
    require(torch.equal(x, kept), f"{name}: x must not be written to")
    for part, value in (("sample", denoised.sample), ("noise", denoised.noise)):
        require(value.shape == x.shape, f"{name}: {part} must be shaped like x, got {list(value.shape)}")
        require(value.dtype == x.dtype, f"{name}: {part} must be {x.dtype}, got {value.dtype}")
        require(bool(value.isfinite().all()), f"{name}: {part} must be finite")
    parts = _parts(denoiser, denoised, torch.tensor(t, dtype=torch.float64, device=x.device))
    require_close(parts.sum(0), x, tolerance, f"{name}: alpha * sample + sigma * noise must be x")
    again = _parts(denoiser, denoiser(x, t, condition), torch.tensor(t, dtype=torch.float64, device=x.device))
    require_close(
        again, parts, 0.0, f"{name}: the same input must give the same answer (is a module in training mode?)"
    )
    for time in (torch.tensor(t, device=x.device), torch.full((len(x),), t, dtype=torch.float64, device=x.device)):
        found = _parts(denoiser, denoiser(x, time, condition), time.double())
        require_close(found, parts, tolerance, f"{name}: t of shape {list(time.shape)} must give what a number gives")
    others = x.roll(1, 0)
    others[1] = x[1]
    found = _parts(denoiser, denoiser(others, t, condition), torch.tensor(t, dtype=torch.float64, device=x.device))
    require_close(found[:, 1], parts[:, 1], tolerance, f"{name}: a sample must not depend on its neighbours")


def _check_mixed_times(denoiser: Denoise, x: Latents, condition: object, tolerance: float) -> None:
    """Each sample at a time of its own."""
    last = denoiser.schedule.num_timesteps - 1
    times = torch.linspace(0, last, len(x), dtype=torch.float64, device=x.device)
    together = _parts(denoiser, denoiser(x, times, condition), times)
    for row, t in enumerate(times):
        alike = _parts(denoiser, denoiser(x, t.item(), condition), t)
        name = f"{denoiser}: each sample must be denoised at its own time, sample {row} at t = {t:g}"
        require_close(together[:, row], alike[:, row], tolerance, name)


def _parts(denoiser: Denoise, denoised: Denoised, t: Tensor) -> Tensor:
    """`[2, batch, ...]`: alpha * sample and sigma * noise, in units of x, so that errors do not blow up at the ends."""
    alpha, sigma = denoiser.schedule.scales(t)
    sample, noise = denoised.sample.double(), denoised.noise.double()
    return torch.stack([like(alpha, sample) * sample, like(sigma, noise) * noise])
