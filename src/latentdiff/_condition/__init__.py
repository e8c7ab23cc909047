"""What steers the network, and the encoders that make it from labels, text, maps and layouts."""

from __future__ import annotations

from latentdiff._condition._class_encoder import ClassEncoder as ClassEncoder
from latentdiff._condition._condition import Condition as Condition
from latentdiff._condition._encoder import ConditionEncoder as ConditionEncoder
from latentdiff._condition._frozen_encoder import FrozenEncoder as FrozenEncoder
from latentdiff._condition._layout_encoder import LayoutEncoder as LayoutEncoder
from latentdiff._condition._multi_encoder import MultiEncoder as MultiEncoder
from latentdiff._condition._spatial_encoder import SpatialEncoder as SpatialEncoder
from latentdiff._condition._text_encoder import TextEncoder as TextEncoder

__all__ = [
    "ClassEncoder",
    "Condition",
    "ConditionEncoder",
    "FrozenEncoder",
    "LayoutEncoder",
    "MultiEncoder",
    "SpatialEncoder",
    "TextEncoder",
]
