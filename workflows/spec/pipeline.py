"""The whole pipeline file as pydantic models: every knob is declared once, here or in spec_train.py, spec_tune.py.

    spec = read_spec("workflows/pipelines/demo.yaml")     # workflows/spec/read.py

Prints as a reference with `rayconteur spec`. This module imports no library but pydantic, so that `--help` and a
mistake in a pipeline file are answered at once.
"""

from typing import Annotated

from pydantic import Field, model_validator

from workflows.spec.cluster import ClusterSpec
from workflows.spec.data import NEW_MODEL, DataSpec, NewModelSpec
from workflows.spec.evaluate import EvaluateSpec
from workflows.spec.optimize import OptimizeSpec
from workflows.spec.section import Section
from workflows.spec.serve import ServeSpec
from workflows.spec.train import TrainSpec
from workflows.spec.tune import TuneSpec


class PipelineSpec(Section):
    """From raw conversations to a chat endpoint."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    """Name of the pipeline: lower-case letters, digits, `.`, `_` and `-`."""

    store: Annotated[str, Field(min_length=1)] = "rayconteur-store"
    """Folder or URI (s3://, gs://) of all artifacts; a relative path starts at the current folder."""

    base_model: Annotated[str, Field(min_length=1)]
    """`new` for a model trained from nothing, `builtin:smollm2-135m-instruct`, a local Hugging Face folder (a path
    that starts with `/`, `./`, `../` or `~`; relative to the pipeline file) or its URI (s3://, gs://), a Hub id
    (`owner/name`, `owner/name@revision`), or for tests `random:tiny-llama` and `random:tiny-gpt2`."""

    new_model: NewModelSpec = NewModelSpec()
    """For `base_model: new`: what it is."""

    data: DataSpec
    """prepare: which conversations."""

    train: TrainSpec = TrainSpec()
    """train: how to fine-tune."""

    tune: TuneSpec | None = None
    """tune: a search over settings of `train`, before it; left out, there is none."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """evaluate: what to measure and when it is good enough."""

    optimize: OptimizeSpec = OptimizeSpec()
    """optimize: the form of the release."""

    serve: ServeSpec = ServeSpec()
    """deploy: the endpoint."""

    cluster: ClusterSpec = ClusterSpec()
    """Where it all runs."""

    @model_validator(mode="after")
    def _new_model_is_possible(self) -> "PipelineSpec":
        if self.base_model != NEW_MODEL:
            if self.new_model != NewModelSpec():
                raise ValueError(
                    f"new_model is for base_model: {NEW_MODEL}, which is {self.base_model}; leave it out"
                )
        elif self.train.adapter is not None:
            raise ValueError(
                f"base_model: {NEW_MODEL} has random weights, which an adapter would keep; say train.adapter: null"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_searched_whole(self) -> "PipelineSpec":
        if (
            self.tune is not None
            and self.train.objective.name == "adversarial"
            and self.tune.scheduler.name != "none"
        ):
            raise ValueError(
                f"tune.scheduler: {self.tune.scheduler.name} compares trials before their end, and of an adversarial "
                "pair the last checkpoint counts; take none"
            )
        return self

    @model_validator(mode="after")
    def _rounded_weights_need_a_form(self) -> "PipelineSpec":
        optimize = self.optimize
        if optimize.is_rounded and not optimize.targets and not self.serve.may_use_openvino:
            raise ValueError(
                f"optimize.weights: {optimize.weights} is a format of the OpenVINO export, which serve.engine torch, "
                "vllm and serve.gpus_per_replica have no use for, and of optimize.targets, which is empty; take "
                "bf16, or name a target"
            )
        return self
