"""Every field of a pipeline file, declared once, one module per section; `PipelineSpec` is the whole file."""

from workflows.spec.cluster import ClusterSpec, ScaleSpec
from workflows.spec.data import NEW_MODEL, DataSpec, NewModelSpec, Source
from workflows.spec.evaluate import EvaluateSpec, GateSpec, PairSpec
from workflows.spec.judge import JudgeSpec
from workflows.spec.lm_eval import LmEvalSpec
from workflows.spec.objectives import (
    AdversarialSpec,
    DistillRepliesSpec,
    DistillSpec,
    DpoSpec,
    KtoSpec,
    ObjectiveSpec,
    OrpoSpec,
    SftSpec,
    SimpoSpec,
    SpinSpec,
    TeacherSpec,
)
from workflows.spec.optimize import OptimizeSpec
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.section import Precision
from workflows.spec.serve import ServeSpec, TlsSpec
from workflows.spec.suites import SuiteSpec
from workflows.spec.train import AdapterSpec, TrainSpec, ZeroSpec
from workflows.spec.tune import (
    AllSpec,
    AshaSpec,
    GridSpec,
    HyperbandSpec,
    MedianSpec,
    MixtureSearchSpec,
    PopulationSpec,
    ProxySearchSpec,
    ProxySpec,
    RandomSpec,
    TpeSpec,
    TuneSpec,
)

__all__ = [
    "NEW_MODEL",
    "AdapterSpec",
    "AdversarialSpec",
    "AllSpec",
    "AshaSpec",
    "ClusterSpec",
    "DataSpec",
    "DistillRepliesSpec",
    "DistillSpec",
    "DpoSpec",
    "EvaluateSpec",
    "GateSpec",
    "GridSpec",
    "HyperbandSpec",
    "JudgeSpec",
    "KtoSpec",
    "LmEvalSpec",
    "MedianSpec",
    "MixtureSearchSpec",
    "NewModelSpec",
    "ObjectiveSpec",
    "OptimizeSpec",
    "OrpoSpec",
    "PairSpec",
    "PipelineSpec",
    "PopulationSpec",
    "Precision",
    "ProxySearchSpec",
    "ProxySpec",
    "RandomSpec",
    "ScaleSpec",
    "ServeSpec",
    "SftSpec",
    "SimpoSpec",
    "Source",
    "SpinSpec",
    "SuiteSpec",
    "TeacherSpec",
    "TlsSpec",
    "TpeSpec",
    "TrainSpec",
    "TuneSpec",
    "ZeroSpec",
]
