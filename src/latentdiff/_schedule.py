r"""How much sample and how much noise at time t.

Every process of this library is one Gaussian path, \(x_t = \alpha_t x_0 + \sigma_t \epsilon\). What matters of it is
the signal-to-noise ratio, kept as its logarithm \(\lambda_t = \log(\alpha_t^2 / \sigma_t^2)\); the *frame* says how
alpha and sigma come from it:

| frame | rule | alpha | sigma |
| --- | --- | --- | --- |
| variance_preserving | \(\alpha^2 + \sigma^2 = 1\) | \(\sqrt{S(\lambda)}\) | \(\sqrt{S(-\lambda)}\) |
| variance_exploding | \(\alpha = 1\) | 1 | \(e^{-\lambda/2}\) |
| flow | \(\alpha + \sigma = 1\) | \(S(\lambda/2)\) | \(S(-\lambda/2)\) |

with S the logistic function. Time runs over -1 ... T - 1: t = -1 is clean (alpha = 1, sigma = 0), t = 0 the least and
t = T - 1 the most noisy time that a model is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias, get_args, overload

import torch
from torch import Tensor

from latentdiff._beta_tables import (
    cosine_betas,
    linear_betas,
    resample_betas,
    scaled_linear_betas,
    sigmoid_betas,
    sqrt_betas,
)
from latentdiff._checks import batch_times, check_choice, check_count, check_order, check_positive, like, working_dtype
from latentdiff._distributions import Gaussian
from latentdiff._log_snr_table import interpolate, invert
from latentdiff._typing import JSON, Latents

Frame: TypeAlias = Literal["variance_preserving", "variance_exploding", "flow"]
FRAMES: Final[tuple[Frame, ...]] = get_args(Frame)


class Point(NamedTuple):
    """A time on the path, in numbers."""

    t: float
    alpha: float
    sigma: float

    @property
    def noise_level(self) -> float:
        """sigma / alpha, the sigma of k-diffusion and EDM; infinite where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), DPM-Solver's lambda; infinite at both ends."""
        if not self.sigma:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


@dataclass(frozen=True, repr=False)
class NoiseSchedule:
    """Scale of sample and noise as functions of the model's time: immutable, picklable, safe to share.

    Made by its class methods, named after the field's schedules. The arithmetic is float64 whatever the caller's dtype
    or autocast; results lie on the device of `t`.

    Attributes:
        frame: How alpha and sigma come from the signal-to-noise ratio.
        num_timesteps: T, at least 1.
        table: Betas of a variance-preserving, noise levels of a variance-exploding schedule, `[T]`; none for flow.
        shift: Factor on sigma / alpha, for flow.

    Raises:
        ValueError: If the table is empty, not monotone, or out of range.
        TypeError: If `num_timesteps` is no int.
    """

    frame: Frame
    num_timesteps: int
    table: tuple[float, ...] = ()
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_choice("frame", self.frame, FRAMES)
        check_positive("shift", self.shift)
        check_count("num_timesteps", self.num_timesteps)
        if len(self.table) != (0 if self.frame == "flow" else self.num_timesteps):
            raise ValueError(f"a table must have num_timesteps={self.num_timesteps} entries, got {len(self.table)}")
        if self.frame == "variance_preserving" and not all(0 < beta <= 1 for beta in self.table):
            raise ValueError(f"betas must be in (0, 1], got values in [{min(self.table):g}, {max(self.table):g}]")
        if self.frame == "variance_preserving" and 1.0 in self.table[:-1]:
            raise ValueError("only the last of the betas may be 1 (zero terminal SNR)")
        if self.frame == "variance_exploding":
            levels = (0.0, *self.table, math.inf)
            if not all(a < b for a, b in pairwise(levels)):
                raise ValueError("noise levels must be positive, finite and strictly rising")

    # Made from formulas of the literature

    @classmethod
    def linear(cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Beta rises linearly (DDPM: Ho et al. 2020, arXiv 2006.11239, sec. 4).

        The curve is that of 1000 steps; another `num_timesteps` resamples it, so that the noise at the end is the same.

        Args:
            num_timesteps: T, at least 1.
            beta_start: First beta of 1000 steps, in (0, 1).
            beta_end: Last beta of 1000 steps, in (0, 1).
        """
        check_count("num_timesteps", num_timesteps)
        return cls.from_betas(resample_betas(linear_betas(beta_start, beta_end), num_timesteps))

    @classmethod
    def scaled_linear(
        cls, num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """The square root of beta rises linearly (latent diffusion, Stable Diffusion; CompVis call it "linear").

        Args:
            num_timesteps: T, at least 1; see `linear`.
            beta_start: First beta of 1000 steps, in (0, 1).
            beta_end: Last beta of 1000 steps, in (0, 1).
        """
        check_count("num_timesteps", num_timesteps)
        return cls.from_betas(resample_betas(scaled_linear_betas(beta_start, beta_end), num_timesteps))

    @classmethod
    def sqrt_linear(cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """`scaled_linear` between DDPM's ends; what CompVis call "sqrt_linear" is `linear`.

        Args:
            num_timesteps: T, at least 1; see `linear`.
            beta_start: First beta of 1000 steps, in (0, 1).
            beta_end: Last beta of 1000 steps, in (0, 1).
        """
        return cls.scaled_linear(num_timesteps, beta_start, beta_end)

    @classmethod
    def sqrt(cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """The square of beta rises linearly: beta = sqrt(linspace(beta_start, beta_end)) (CompVis' "sqrt").

        Args:
            num_timesteps: T, at least 1; see `linear`.
            beta_start: Square of the first beta of 1000 steps, in (0, 1).
            beta_end: Square of the last beta of 1000 steps, in (0, 1).
        """
        check_count("num_timesteps", num_timesteps)
        return cls.from_betas(resample_betas(sqrt_betas(beta_start, beta_end), num_timesteps))

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """Alpha-bar follows a squared cosine (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17).

        Args:
            num_timesteps: T, at least 1.
            offset: The paper's s, at least 0.
            max_beta: Bound of beta, in (0, 1]; 1 gives zero terminal SNR.
        """
        check_count("num_timesteps", num_timesteps)
        return cls.from_betas(cosine_betas(num_timesteps, offset, max_beta))

    @classmethod
    def sigmoid(
        cls, num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> NoiseSchedule:
        """Alpha-bar follows a logistic curve (Jabri et al. 2022, arXiv 2212.11972, alg. 1).

        Args:
            num_timesteps: T, at least 1.
            start: Where on the curve the clean end lies.
            end: Where on the curve the noisy end lies, above `start`.
            tau: Width of the curve, positive.
            max_beta: Bound of beta, in (0, 1].
        """
        check_count("num_timesteps", num_timesteps)
        return cls.from_betas(sigmoid_betas(num_timesteps, start, end, tau, max_beta))

    @classmethod
    def flow(cls, num_timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """The straight path alpha = 1 - s, sigma = s with s = (t + 1) / T (Lipman et al. 2023, arXiv 2210.02747).

        Args:
            num_timesteps: T, at least 1; times between the whole ones are as good.
            shift: Moves s to shift * s / (1 + (shift - 1) * s) (Esser et al. 2024, arXiv 2403.03206, eq. 23).
        """
        return cls("flow", num_timesteps, shift=float(shift))

    @classmethod
    def edm(cls, sigma_min: float = 0.002, sigma_max: float = 80.0, num_timesteps: int = 1000) -> NoiseSchedule:
        """Alpha is 1, log sigma runs evenly from sigma_min at t = 0 to sigma_max at T - 1 (Karras et al. 2022).

        Args:
            sigma_min: Least noise level above 0.
            sigma_max: Greatest noise level.
            num_timesteps: T, at least 2; times between the whole ones are as good.
        """
        check_positive("sigma_min", sigma_min)
        check_positive("sigma_max", sigma_max)
        check_count("num_timesteps", num_timesteps, least=2)
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_max must be above sigma_min={sigma_min}, got {sigma_max}")
        rate = math.log(sigma_max / sigma_min) / (num_timesteps - 1)
        levels = (sigma_min * math.exp(rate * i) for i in range(num_timesteps - 1))
        return cls("variance_exploding", num_timesteps, (*levels, float(sigma_max)))

    # Made from tables

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> NoiseSchedule:
        r"""From \(\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}\), the variance that step t adds.

        Args:
            betas: `[T]`, in (0, 1); the last one may be 1.
        """
        values = _floats("betas", betas)
        return cls("variance_preserving", len(values), values)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor | Sequence[float]) -> NoiseSchedule:
        r"""\(\bar\alpha_t = \alpha_t^2\), from 1 (before the first entry) falling.

        Args:
            alphas_cumprod: `[T]`, strictly falling in (0, 1); the last one may be 0.
        """
        values = _floats("alphas_cumprod", alphas_cumprod)
        levels = (1.0, *values)
        if not all(a > b >= 0 for a, b in pairwise(levels)):
            raise ValueError("alphas_cumprod must fall strictly and lie in [0, 1)")
        return cls.from_betas([(a - b) / a for a, b in pairwise(levels)])

    def zero_terminal_snr(self) -> NoiseSchedule:
        """The same schedule, rescaled to end in pure noise (Lin et al. 2024, arXiv 2305.08891, alg. 1).

        Raises:
            ValueError: If the frame is variance exploding, which never ends in pure noise.
        """
        if self.frame == "variance_exploding":
            raise ValueError("a variance-exploding schedule has no zero terminal SNR; use a variance-preserving one")
        if self.frame == "flow":
            return self
        roots = self.alphas_cumprod.sqrt()
        scaled = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1])) if self.num_timesteps > 1 else roots * 0
        return self.from_alphas_cumprod(scaled.square())

    def shifted(self, shift: float) -> NoiseSchedule:
        """The same schedule with sigma / alpha multiplied by `shift` (Hoogeboom et al. 2023, arXiv 2301.11093, eq. 6).

        Args:
            shift: Above 1 is noisier, as larger images need it. For flow the published shift of Esser et al. 2024.
        """
        check_positive("shift", shift)
        if self.frame == "flow":
            return replace(self, shift=self.shift * shift)
        if self.frame == "variance_exploding":
            return replace(self, table=tuple(level * shift for level in self.table))
        log_snr = self._log_snrs - 2 * math.log(shift)
        log_alphas_cumprod = -torch.nn.functional.softplus(-log_snr)
        before = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), log_alphas_cumprod[:-1]])
        return self.from_betas(-torch.expm1(log_alphas_cumprod - before))

    # Tables

    @property
    def betas(self) -> Tensor:
        r"""\(\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}\), float64 `[T]`, a fresh copy.

        In other frames that of the variance-preserving schedule with the same signal-to-noise ratio.
        """
        if self.frame == "variance_preserving":
            return torch.tensor(self.table, dtype=torch.float64, device="cpu")
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), self.alphas_cumprod[:-1]])
        return 1 - self.alphas_cumprod / before

    @property
    def alphas_cumprod(self) -> Tensor:
        r"""\(\bar\alpha_t = \mathrm{SNR} / (1 + \mathrm{SNR})\), float64 `[T]`, a fresh copy."""
        if self.frame == "variance_preserving":
            return torch.cumprod(1 - self.betas, 0)
        return torch.sigmoid(self._log_snrs)

    @property
    def terminal_snr(self) -> float:
        r"""\(\alpha^2 / \sigma^2\) at the noisiest time T - 1, at least 0.

        Walks begin from noise alone, so what is left of the sample there is a difference between training and use: 4e-5
        for `linear`, .0047 for `scaled_linear`, whatever the number of timesteps. Above .01 or so lower it, as
        `zero_terminal_snr` does (Lin et al. 2024, arXiv 2305.08891).
        """
        return math.exp(self.log_snr(self.num_timesteps - 1.0))

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments that build this schedule again."""
        shared: dict[str, JSON] = {"frame": self.frame, "num_timesteps": int(self.num_timesteps)}
        return shared | ({"shift": float(self.shift)} if self.frame == "flow" else {"table": list(self.table)})

    @classmethod
    def from_config(cls, config: Mapping[str, JSON]) -> NoiseSchedule:
        """The schedule of a `config`."""
        table = config.get("table", ())
        return cls(**(dict(config) | {"table": tuple(table)}))  # type: ignore[arg-type]

    # Functions of time

    @overload
    def log_snr(self, t: float) -> float: ...
    @overload
    def log_snr(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: Tensor | float) -> Tensor | float:
        """log(alpha^2 / sigma^2): infinite at t = -1, linear in t between whole times (exact for flow at all times).

        Args:
            t: `[batch]` or `[]`, integer or floating, in -1 ... T - 1; or a number.

        Returns:
            float64, same shape and device; a number for a number.

        Raises:
            ValueError: If a time is out of range (looked at on the CPU only).
        """
        if not isinstance(t, Tensor):
            return float(self.log_snr(torch.tensor(t, dtype=torch.float64, device="cpu")))
        return self._log_snr(self._check_time(t))

    @overload
    def alpha(self, t: float) -> float: ...
    @overload
    def alpha(self, t: Tensor) -> Tensor: ...
    def alpha(self, t: Tensor | float) -> Tensor | float:
        """Scale of the sample, float64; arguments and errors as for `log_snr`."""
        return self.scales(t)[0] if isinstance(t, Tensor) else self.point(t).alpha

    @overload
    def sigma(self, t: float) -> float: ...
    @overload
    def sigma(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor | float) -> Tensor | float:
        """Scale of the noise, float64; arguments and errors as for `log_snr`."""
        return self.scales(t)[1] if isinstance(t, Tensor) else self.point(t).sigma

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at once; arguments and errors as for `log_snr`."""
        return self._from_log_snr(self.log_snr(t))

    def point(self, t: float) -> Point:
        """alpha and sigma at one time, as numbers; remembered, so that loops pay for it once.

        Raises:
            ValueError: If `t` is out of -1 ... T - 1.
        """
        known: dict[float, Point] = self.__dict__.setdefault("_points", {})
        if (point := known.get(t)) is None:
            if len(known) >= 4096:
                known.clear()
            alpha, sigma = self.scales(torch.tensor(t, dtype=torch.float64, device="cpu"))
            point = known[t] = Point(t, alpha.item(), sigma.item())
        return point

    @overload
    def timestep(self, log_snr: float) -> float: ...
    @overload
    def timestep(self, log_snr: Tensor) -> Tensor: ...
    def timestep(self, log_snr: Tensor | float) -> Tensor | float:
        """The time of a log SNR, inverse of `log_snr`; below the least one, the last time T - 1.

        Args:
            log_snr: `[batch]` or `[]`; or a number.

        Returns:
            float64 in -1 ... T - 1, same shape and device; a number for a number.

        Raises:
            ValueError: If a number is NaN.
        """
        if not isinstance(log_snr, Tensor):
            if math.isnan(log_snr):
                raise ValueError("log_snr must be a number, got NaN")
            return float(self.timestep(torch.tensor(log_snr, dtype=torch.float64, device="cpu")))
        return self._timestep(log_snr.to(torch.float64))

    # The process

    def add_noise(self, sample: Latents, noise: Latents, t: Tensor | float) -> Latents:
        r"""Draw from \(q(x_t \mid x_0) = N(\alpha_t x_0, \sigma_t^2 I)\) (Ho et al. 2020, eq. 4).

        Args:
            sample: `[batch, channels, *spatial]`, floating.
            noise: Same shape, standard normal.
            t: `[batch]`, `[]` or a number.

        Returns:
            Shaped and typed like `sample`; computed in float32 at least.

        Raises:
            ValueError: If the shapes differ or a time is out of range.
        """
        if noise.shape != sample.shape:
            raise ValueError(f"noise must have sample's shape {list(sample.shape)}, got {list(noise.shape)}")
        alpha, sigma = self.scales(t) if isinstance(t, Tensor) else self.point(t)[1:]
        dtype = working_dtype(sample.dtype)
        x, epsilon = sample.to(dtype), noise.to(dtype)
        return (like(alpha, x) * x + like(sigma, x) * epsilon).to(sample.dtype)

    def transition(self, noisy: Latents, t: Tensor | float, next_t: Tensor | float) -> Gaussian:
        r"""\(q(x_t \mid x_s)\), from less to more noise, over one step or many.

        With \(\alpha_{t|s} = \alpha_t / \alpha_s\) and \(r = \mathrm{SNR}_t / \mathrm{SNR}_s\): mean
        \(\alpha_{t|s} x_s\), variance \(\sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2 = (1 - r)\,\sigma_t^2\)
        (Kingma et al. 2021, arXiv 2107.00630, app. A). One step of a variance-preserving schedule is
        \(N(\sqrt{1 - \beta_t}\,x_{t-1}, \beta_t I)\) (Ho et al. 2020, eq. 2); steps one after the other compose, and
        from the clean end, s = -1, they are \(q(x_t \mid x_0)\).

        Args:
            noisy: `[batch, channels, *spatial]`, x_s.
            t: s, `[batch]`, `[]` or a number.
            next_t: t, at least s, likewise.

        Returns:
            `mean` like `noisy`, `variance` `[batch, 1, ...]` (float64).

        Raises:
            ValueError: If the times do not fit the batch, are out of range or in the wrong order (both on the CPU).
        """
        start, end = batch_times("t", t, noisy), batch_times("next_t", next_t, noisy)
        check_order("t", start, "next_t", end)
        (alpha_s, _), (alpha_t, sigma_t) = self.scales(start), self.scales(end)
        kept = torch.where(alpha_s > 0, alpha_t / alpha_s, 1.0)
        added = -torch.expm1((self.log_snr(end) - self.log_snr(start)).nan_to_num(0.0, neginf=-torch.inf))
        x_s = noisy.to(working_dtype(noisy.dtype))
        shape = (-1, *(1,) * (noisy.ndim - 1))
        return Gaussian((like(kept, x_s) * x_s).to(noisy.dtype), (added * sigma_t.square()).reshape(shape))

    def posterior(
        self, sample: Latents, noisy: Latents, t: Tensor | float, next_t: Tensor | float | None = None
    ) -> Gaussian:
        r"""\(q(x_s \mid x_t, x_0)\), by default of one step, s = t - 1 (Ho et al. 2020, eq. 6 and 7).

        With \(r = \mathrm{SNR}_t / \mathrm{SNR}_s\), in every frame:
        mean \(r \frac{\alpha_s}{\alpha_t} x_t + (1 - r)\,\alpha_s x_0\), variance \((1 - r)\,\sigma_s^2\).

        Args:
            sample: `[batch, channels, *spatial]`, x_0.
            noisy: Same shape, x_t.
            t: `[batch]`, `[]` or a number.
            next_t: s, at most t, likewise; t - 1 if not given (at t = 0 the clean end: variance 0).

        Returns:
            `mean` like `sample`, `variance` `[batch, 1, ...]` (float64).

        Raises:
            ValueError: If the shapes differ, or as for `transition`.
        """
        if noisy.shape != sample.shape:
            raise ValueError(f"noisy must have sample's shape {list(sample.shape)}, got {list(noisy.shape)}")
        t = batch_times("t", t, sample)
        s = t - 1 if next_t is None else batch_times("next_t", next_t, sample)
        check_order("next_t", s, "t", t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.scales(t), self.scales(s.clamp(min=-1))
        transition = torch.where(alpha_s > 0, alpha_t / alpha_s, 1.0)  # alpha_t|s, and below r / transition
        kept = transition * (sigma_s / sigma_t).nan_to_num(0.0).square()
        replaced = 1 - kept * transition
        dtype = working_dtype(sample.dtype)
        x_0, x_t = sample.to(dtype), noisy.to(dtype)
        mean = like(kept, x_t) * x_t + like(replaced * alpha_s, x_0) * x_0
        shape = (-1, *(1,) * (sample.ndim - 1))
        return Gaussian(mean.to(sample.dtype), (replaced * sigma_s.square()).reshape(shape))

    @overload
    def reverse_log_variances(self, t: float, next_t: float | None = None) -> tuple[float, float]: ...
    @overload
    def reverse_log_variances(self, t: Tensor, next_t: Tensor | float | None = None) -> tuple[Tensor, Tensor]: ...
    def reverse_log_variances(
        self, t: Tensor | float, next_t: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor] | tuple[float, float]:
        r"""Log variances between which that of \(p(x_s \mid x_t)\) lies, by default of one step, s = t - 1.

        With \(r = \mathrm{SNR}_t / \mathrm{SNR}_s\), in every frame: small \((1 - r)\,\sigma_s^2\), that of
        `posterior`, right for data in a point; large \((1 - r)\,\sigma_t^2\), right for normal data of unit size.
        Variance preserving they are \(\tilde\beta_t\) and \(\beta_t\) (Ho et al. 2020, sec. 3.2; Nichol and Dhariwal
        2021, arXiv 2102.09672, eq. 15).

        Both are finite at all times. A step to the clean end has a small variance of 0; the one of the step from
        max(t, 1) to 0 stands for it (as published code does), bounded by the large one. No step starts at t = -1;
        there both are those of t = 0.

        Args:
            t: `[batch]` or `[]`, integer or floating, in -1 ... T - 1; or a number.
            next_t: s, below t, likewise; t - 1 if not given.

        Returns:
            small and large, float64, shaped like `t` and on its device; numbers for numbers.

        Raises:
            ValueError: If `t` is out of range (looked at on the CPU only).
        """
        if not isinstance(t, Tensor):
            time = torch.tensor(t, dtype=torch.float64, device="cpu")
            low, high = self.reverse_log_variances(time, next_t)
            return low.item(), high.item()
        t = self._check_time(t)
        s = (t - 1 if next_t is None else torch.as_tensor(next_t, dtype=torch.float64, device=t.device)).clamp(min=-1)
        is_last, t = s <= -1, t.where(t > -1, 0.0)
        high = self._log_share(t, s) + self._log_sigma_squared(t)
        first = min(1, self.num_timesteps - 1)
        start, end = torch.where(is_last, t.clamp(min=first), t), torch.where(is_last, 0.0, s)
        low = self._log_share(start, end) + self._log_sigma_squared(end)
        return torch.minimum(torch.where(is_last & (start <= 0), high, low), high), high

    # Inside

    def __repr__(self) -> str:
        ends = f"alpha {self.alpha(0.0):.4g} ... {self.alpha(self.num_timesteps - 1.0):.4g}"
        return f"NoiseSchedule({self.frame}, num_timesteps={self.num_timesteps}, {ends})"

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    @property
    def _log_snrs(self) -> Tensor:
        """float64 `[T]` on the CPU, made once."""
        return self._log_snrs_on(torch.device("cpu"))

    def _log_snrs_on(self, device: torch.device) -> Tensor:
        tables: dict[torch.device, Tensor] = self.__dict__.setdefault("_tables", {})
        if (table := tables.get(device)) is None:
            tables[device] = table = self._make_log_snrs().to(device)
        return table

    def _make_log_snrs(self) -> Tensor:
        if self.frame == "flow":
            return self._flow_log_snr(torch.arange(self.num_timesteps, dtype=torch.float64, device="cpu"))
        table = torch.tensor(self.table, dtype=torch.float64, device="cpu")
        if self.frame == "variance_exploding":
            return -2 * table.log()
        log_alphas_cumprod = torch.log1p(-table).cumsum(0)
        return log_alphas_cumprod - torch.log(-torch.expm1(log_alphas_cumprod))

    def _flow_log_snr(self, t: Tensor) -> Tensor:
        return 2 * torch.log((self.num_timesteps - 1 - t) / (t + 1)) - 2 * math.log(self.shift)

    def _check_time(self, t: Tensor) -> Tensor:
        last = self.num_timesteps - 1
        t = t.to(torch.float64)
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and t.numel():
            low, high = (bound.item() for bound in torch.aminmax(t))
            if not (low >= -1 and high <= last):
                raise ValueError(f"t must be in [-1, {last}], got values in [{low:g}, {high:g}]")
        return t.clamp(-1, last)

    def _log_snr(self, t: Tensor) -> Tensor:
        if self.frame == "flow":
            return self._flow_log_snr(t)
        return interpolate(self._log_snrs_on(t.device), t)

    def _timestep(self, log_snr: Tensor) -> Tensor:
        if self.frame == "flow":
            return self.num_timesteps / (1 + self.shift * torch.exp(log_snr / 2)) - 1
        return invert(self._log_snrs_on(log_snr.device), log_snr)

    def _from_log_snr(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        match self.frame:
            case "variance_preserving":
                return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
            case "variance_exploding":
                return torch.ones_like(log_snr), torch.exp(-log_snr / 2)
            case "flow":
                return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)

    def _log_share(self, t: Tensor, s: Tensor) -> Tensor:
        """log(1 - SNR_t / SNR_s), the share of the noise's variance that the step from t to s removes."""
        return torch.log(-torch.expm1(self._log_snr(t) - self._log_snr(s)))

    def _log_sigma_squared(self, t: Tensor) -> Tensor:
        log_snr = self._log_snr(t)
        match self.frame:
            case "variance_preserving":
                return torch.nn.functional.logsigmoid(-log_snr)
            case "variance_exploding":
                return -log_snr
            case "flow":
                return 2 * torch.nn.functional.logsigmoid(-log_snr / 2)


def _floats(name: str, values: Tensor | Sequence[float]) -> tuple[float, ...]:
    table = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if table.ndim != 1 or not table.numel():
        raise ValueError(f"{name} must have shape [num_timesteps], got {list(table.shape)}")
    return tuple(table.tolist())
