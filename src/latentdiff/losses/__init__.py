r"""What training minimises.

**The first stage** is trained by two optimisers in turn: `AutoencoderLoss.generator_loss` for the autoencoder and,
where there is an adversary, `AutoencoderLoss.discriminator_loss` for the discriminator.

**The denoising network** is asked about \(x_t = \alpha x_0 + \sigma \epsilon\), and the loss of a sample is the mean
over its values of

\[ \rho(e), \qquad e = \sqrt{w(t)}\,(\hat x_0 - x_0). \]

The *kind* is \(\rho\): \(e^2\), \(|e|\) or something between. The *weighting* is w, a weight of the sample's squared
error. As the estimates of sample and noise are consistent, an error of the one is an error of the other, of v, and of
any target y: \(\hat y - y = -\frac{D}{\sigma} (\hat x_0 - x_0)\), with D as for `latentdiff.prediction_target`. So each
weight stands in one place, and the same loss comes out whatever the network predicts. What is computed is the error of
the network's own target, which is precise where that of the sample or of the noise is not.

| weighting | class | w, with SNR = alpha^2 / sigma^2 | as a weight of the noise's squared error |
| --- | --- | --- | --- |
| `uniform` | `UniformWeight` | (D / sigma)^2: 1 for the network's own target | |
| `snr` | `SnrWeight` | SNR | 1 |
| `min_snr` | `MinSnrWeight` | min(SNR, gamma) | min(SNR, gamma) / SNR |
| `p2` | `P2Weight` | SNR / (k + SNR)^gamma | 1 / (k + SNR)^gamma |
| `edm` | `EdmWeight` | SNR + 1 / sigma_data^2 | 1 + 1 / (SNR sigma_data^2) |
| `sigmoid` | `SigmoidWeight` | SNR sigmoid(bias - log SNR) | sigmoid(bias - log SNR) |
| `vlb` | `VlbWeight` | T / 2 (SNR(t - 1) - SNR(t)) | T / 2 (SNR(t - 1) / SNR(t) - 1) |

Weights are evaluated as if no scale were below 1e-12, so that all are finite, and right in the limit, where alpha or
sigma is 0; `snr` and `edm`, which have no limit without noise, are 1e24 there. At t = -1 itself there is no noise to
know, so that networks which predict it cannot have a loss of 0; no times are drawn there.

What training emphasises is the weight times how often a time is drawn:

| times | class | |
| --- | --- | --- |
| `uniform` | `UniformTimes` | evenly in time |
| `log_snr` | `LogSnrTimes` | evenly in log SNR |
| `log_normal` | `LogNormalTimes` | log(sigma / alpha) is normal |
| `logit_normal` | `LogitNormalTimes` | the logit of the share of time is normal |
| | `ImportanceTimes` | by given probabilities, and weighted back: the mean of `UniformTimes`, with another variance |
| | `LossAwareTimes` | likewise, by the size of recent losses |
"""

from __future__ import annotations

from latentdiff.losses._adversarial import Adversarial as Adversarial
from latentdiff.losses._adversarial import adaptive_weight as adaptive_weight
from latentdiff.losses._adversarial import discriminator_loss as discriminator_loss
from latentdiff.losses._autoencoder import AutoencoderLoss as AutoencoderLoss
from latentdiff.losses._autoencoder import AutoencoderLossOutput as AutoencoderLossOutput
from latentdiff.losses._autoencoder import DiscriminatorLossOutput as DiscriminatorLossOutput
from latentdiff.losses._autoencoder import ParameterGroups as ParameterGroups
from latentdiff.losses._autoencoder import Perceptual as Perceptual
from latentdiff.losses._diffusion import KINDS as KINDS
from latentdiff.losses._diffusion import TIMES as TIMES
from latentdiff.losses._diffusion import WEIGHTINGS as WEIGHTINGS
from latentdiff.losses._diffusion import DiffusionLoss as DiffusionLoss
from latentdiff.losses._diffusion import Kind as Kind
from latentdiff.losses._diffusion import TimesName as TimesName
from latentdiff.losses._diffusion import WeightingName as WeightingName
from latentdiff.losses._loss_aware import LossAwareTimes as LossAwareTimes
from latentdiff.losses._output import DiffusionLossOutput as DiffusionLossOutput
from latentdiff.losses._pyramid import PyramidLoss as PyramidLoss
from latentdiff.losses._times import DrawnTimes as DrawnTimes
from latentdiff.losses._times import ImportanceTimes as ImportanceTimes
from latentdiff.losses._times import LogitNormalTimes as LogitNormalTimes
from latentdiff.losses._times import LogNormalTimes as LogNormalTimes
from latentdiff.losses._times import LogSnrTimes as LogSnrTimes
from latentdiff.losses._times import TimeSampling as TimeSampling
from latentdiff.losses._times import UniformTimes as UniformTimes
from latentdiff.losses._uncertainty import Uncertainty as Uncertainty
from latentdiff.losses._weighting import EdmWeight as EdmWeight
from latentdiff.losses._weighting import MinSnrWeight as MinSnrWeight
from latentdiff.losses._weighting import NoiseScales as NoiseScales
from latentdiff.losses._weighting import P2Weight as P2Weight
from latentdiff.losses._weighting import SigmoidWeight as SigmoidWeight
from latentdiff.losses._weighting import SnrWeight as SnrWeight
from latentdiff.losses._weighting import UniformWeight as UniformWeight
from latentdiff.losses._weighting import VlbWeight as VlbWeight
from latentdiff.losses._weighting import Weighting as Weighting

__all__ = [
    "AutoencoderLoss",
    "AutoencoderLossOutput",
    "DiffusionLoss",
    "DiffusionLossOutput",
    "DiscriminatorLossOutput",
    "DrawnTimes",
    "EdmWeight",
    "ImportanceTimes",
    "KINDS",
    "Kind",
    "LogNormalTimes",
    "LogSnrTimes",
    "LogitNormalTimes",
    "LossAwareTimes",
    "MinSnrWeight",
    "NoiseScales",
    "P2Weight",
    "ParameterGroups",
    "Perceptual",
    "PyramidLoss",
    "SigmoidWeight",
    "SnrWeight",
    "TIMES",
    "TimeSampling",
    "TimesName",
    "Uncertainty",
    "UniformTimes",
    "UniformWeight",
    "VlbWeight",
    "WEIGHTINGS",
    "Weighting",
    "WeightingName",
    "adaptive_weight",
    "discriminator_loss",
]
