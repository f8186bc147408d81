"""Circuits: a mask over the edges of a model, and calculus on it."""

from mijax.circuits._acdc import ACDC as ACDC
from mijax.circuits._acdc import ACDCSweep as ACDCSweep
from mijax.circuits._acdc import acdc_thresholds as acdc_thresholds
from mijax.circuits._activations import EAPIGActivations as EAPIGActivations
from mijax.circuits._eap import EAP as EAP
from mijax.circuits._eap import EAPIG as EAPIG
from mijax.circuits._flow import InformationFlowRoutes as InformationFlowRoutes
from mijax.circuits._graph import Graph as Graph
from mijax.circuits._hisp import HISP as HISP
from mijax.circuits._means import mean_ablation as mean_ablation
from mijax.circuits._method import AbstractAttribution as AbstractAttribution
from mijax.circuits._method import AbstractMethod as AbstractMethod
from mijax.circuits._method import discover as discover
from mijax.circuits._random import Random as Random
from mijax.circuits._scores import Scores as Scores
from mijax.circuits._task import AbstractAblation as AbstractAblation
from mijax.circuits._task import Counterfactual as Counterfactual
from mijax.circuits._task import Fixed as Fixed
from mijax.circuits._task import Task as Task
from mijax.circuits._task import Zero as Zero
