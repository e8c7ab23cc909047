r"""Guidance: denoisers made of denoisers.

Each class takes a denoiser and is one, so that guidance composes and solvers never see it. Conditions are passed on as
they are: anything that knows how to join two of its kind along the batch (`a.cat(b)`, as `Condition` does), a tensor,
or None.

With \(\epsilon = -\sigma\,\nabla\log p_t\), the difference of two estimates of the noise is that of two scores, and
that of the sample is the same one on another scale, \(\Delta x_0 = -(\sigma / \alpha)\,\Delta\epsilon\). What is linear
in estimates is therefore the same in epsilon, x_0 and v; what is not (clipping, projecting onto an estimate) is done on
the sample, and the noise follows from it, so that always \(\alpha\,\hat x_0 + \sigma\,\hat\epsilon = x_t\). At t = -1,
where x_t is the sample itself, nothing is left to guide and answers stay what they are.

| class | the estimate that is followed |
| --- | --- |
| `ClassifierFree` | unconditional + scale * (conditional - unconditional) |
| `Classifier` | that of p(x) p(y given x) ** scale, by a classifier's gradient |
| `Autoguidance` | weak + scale * (strong - weak) |
| `Projected` | conditional, moved away from the unconditional one at right angles to itself |
| `PerpendicularNegative` | away from a negative only as far as it does not oppose the condition |
| `Clip`, `DynamicThreshold` | the same with a bounded sample |
| `Given` | the same under one fixed condition |
"""

from __future__ import annotations

from latentdiff.guidance._autoguidance import Autoguidance as Autoguidance
from latentdiff.guidance._base import Guidance as Guidance
from latentdiff.guidance._base import Scale as Scale
from latentdiff.guidance._classifier import Classifier as Classifier
from latentdiff.guidance._classifier import LogProb as LogProb
from latentdiff.guidance._classifier_free import ClassifierFree as ClassifierFree
from latentdiff.guidance._clip import Clip as Clip
from latentdiff.guidance._given import Given as Given
from latentdiff.guidance._perpendicular import PerpendicularNegative as PerpendicularNegative
from latentdiff.guidance._projected import Projected as Projected
from latentdiff.guidance._threshold import DynamicThreshold as DynamicThreshold

__all__ = [
    "Autoguidance",
    "Classifier",
    "ClassifierFree",
    "Clip",
    "DynamicThreshold",
    "Given",
    "Guidance",
    "LogProb",
    "PerpendicularNegative",
    "Projected",
    "Scale",
]
