"""Attributions: what every site is worth, from one backward pass or a few."""

from mijax.attribution._atp import AtP as AtP
from mijax.attribution._atp import IntegratedGradients as IntegratedGradients
from mijax.attribution._atp_star import AtPStar as AtPStar
from mijax.attribution._attribute import attribute as attribute
from mijax.attribution._method import AbstractMethod as AbstractMethod
