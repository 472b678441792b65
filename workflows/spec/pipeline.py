"""The whole pipeline file as one pydantic model; each section has a module beside this one.

    spec = read_spec("workflows/pipelines/demo.yaml")     # workflows/spec/read.py

`rayconteur spec` prints all fields as a reference. This module imports no library except pydantic, so `--help` and a
mistake in a pipeline file get an answer at once.
"""

from typing import Annotated

from pydantic import Field, model_validator

from models.errors import nearest
from workflows.spec.cluster import ClusterSpec
from workflows.spec.data import NEW_MODEL, DataSpec, NewModelSpec
from workflows.spec.evaluate import EvaluateSpec
from workflows.spec.optimize import OptimizeSpec
from workflows.spec.section import Section
from workflows.spec.serve import SAMPLING, ServeSpec
from workflows.spec.train import TrainSpec
from workflows.spec.tune import SUITE, TuneSpec


class PipelineSpec(Section):
    """A whole pipeline, from raw conversations to a chat endpoint."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    """Name of the pipeline: lowercase letters, digits, `.`, `_` and `-`."""

    store: Annotated[str, Field(min_length=1)] = "rayconteur-store"
    """Folder or URI (s3://, gs://) that holds all artifacts; a relative path starts at the current folder."""

    base_model: Annotated[str, Field(min_length=1)]
    """The base model: `new` to train one from scratch, `builtin:smollm2-135m-instruct`, a local Hugging Face folder
    (a path that starts with `/`, `./`, `../` or `~`, relative to the pipeline file) or its URI (s3://, gs://), a Hub
    id (`owner/name`, `owner/name@revision`), or, for tests, `random:tiny-llama` or `random:tiny-gpt2`."""

    new_model: NewModelSpec = NewModelSpec()
    """Architecture and size of the model that `base_model: new` trains from scratch."""

    data: DataSpec
    """prepare: the conversations to train on."""

    train: TrainSpec = TrainSpec()
    """train: how to fine-tune the base model."""

    tune: TuneSpec | None = None
    """tune: a hyperparameter search over fields of `train`, run before it; left out, no search runs."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """evaluate: what to measure, and what the model must reach to pass."""

    optimize: OptimizeSpec = OptimizeSpec()
    """optimize: the format of the release."""

    serve: ServeSpec = ServeSpec()
    """deploy: the endpoint."""

    cluster: ClusterSpec = ClusterSpec()
    """The Ray cluster that runs all of it."""

    @property
    def searches_sampling(self) -> bool:
        """Whether the search is over `serve.sampling`: it compares the trained model's replies and trains nothing."""
        return self.tune is not None and any(field.startswith(SAMPLING) for field in self.tune.space)

    @property
    def optimize_cpus(self) -> float:
        """CPU cores of the worker of `optimize`."""
        own = self.optimize.cpus_per_worker
        return self.evaluate.cpus_per_worker if own is None else own

    @model_validator(mode="after")
    def _new_model_is_possible(self) -> "PipelineSpec":
        if self.base_model != NEW_MODEL:
            if self.new_model != NewModelSpec():
                raise ValueError(f"new_model needs base_model: {NEW_MODEL}, which is {self.base_model}; leave it out")
        elif self.train.adapter is not None:
            raise ValueError(
                f"base_model: {NEW_MODEL} has random weights, which an adapter would freeze; set train.adapter: null"
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
                f"tune.scheduler: {self.tune.scheduler.name} compares trials before their end, but for an "
                "adversarial pair only the last checkpoint counts; use none"
            )
        return self

    @model_validator(mode="after")
    def _replies_are_of_conversations(self) -> "PipelineSpec":
        objective = self.train.objective
        if self.data.deduplicate.compare == "replies" and objective.examples != "conversations":
            learned = {"pairs": "a chosen and a rejected reply", "judged": "a labelled reply"}[objective.examples]
            raise ValueError(
                f"data.deduplicate.compare: replies is for conversations, of which any reply can be left untrained; "
                f"with train.objective {objective.name}, all of a line is about {learned}; compare conversations"
            )
        return self

    @model_validator(mode="after")
    def _suites_can_be_measured(self) -> "PipelineSpec":
        metrics = [] if self.tune is None else [name for name in self.tune.metric if name.startswith(SUITE)]
        every = self.train.evaluate_every_steps
        if not metrics and every is None:
            return self
        field = f"tune.metric: {metrics[0]}" if metrics else f"train.evaluate_every_steps: {every}"
        scorers = {suite.shown_name: suite.scorer for suite in self.evaluate.suites}
        if not scorers:
            raise ValueError(f"{field} needs evaluate.suites, which has none; add one")
        for name in (metric.removeprefix(SUITE) for metric in metrics):
            if name not in scorers:
                near = nearest(name, scorers)
                hint = f"; did you mean {SUITE}{near}?" if near else ""
                raise ValueError(
                    f"tune.metric: no suite of evaluate.suites is named {name}; there are {', '.join(scorers)}{hint}"
                )
            if scorers[name] == "perplexity":
                raise ValueError(
                    f"tune.metric: {SUITE}{name} is of given replies, whose losses a training does not measure; "
                    "take held_out_loss, or a suite of replies"
                )
        if self.searches_sampling and every is None:
            return self
        if self.train.zero.stage == 3:
            raise ValueError(
                f"{field} lets each worker generate replies, which needs the whole model; use train.zero.stage 0, 1 "
                "or 2"
            )
        if metrics and self.train.objective.name == "adversarial":
            raise ValueError(f"{field} is not measured in the phases of an adversarial pair; take another metric")
        return self

    @model_validator(mode="after")
    def _mixture_can_be_searched(self) -> "PipelineSpec":
        if self.tune is None or self.tune.searcher.name != "mixture":
            return self
        objective = self.train.objective
        if objective.name != "sft":
            raise ValueError(
                f"tune.searcher: mixture trains small models with train.objective sft, which is {objective.name}; "
                "search the mixture with sft, then take its weights"
            )
        if len(self.data.sources) < 2:
            raise ValueError("tune.searcher: mixture needs two or more data.sources, which has 1")
        if self.data.temperature is not None or any(source.repeat is not None for source in self.data.sources):
            raise ValueError("tune.searcher: mixture finds the weights; leave out data.temperature and repeat")
        return self

    @model_validator(mode="after")
    def _proxy_is_another_model(self) -> "PipelineSpec":
        proxy = self.tune.proxy if self.tune else None
        if proxy is None:
            return self
        if NEW_MODEL in (proxy.base_model, self.base_model):
            field = "tune.proxy.base_model" if proxy.base_model == NEW_MODEL else "base_model"
            raise ValueError(
                f"tune.proxy takes settings from one trained model to another, and {field} is {NEW_MODEL}; give a "
                "model that exists, or leave out tune.proxy"
            )
        if proxy.base_model == self.base_model:
            raise ValueError(
                f"tune.proxy.base_model is base_model itself, {self.base_model}; give a smaller model, or leave out "
                "tune.proxy"
            )
        return self

    @model_validator(mode="after")
    def _rounded_weights_need_a_form(self) -> "PipelineSpec":
        optimize = self.optimize
        if optimize.is_rounded and not optimize.targets and not self.serve.may_use_openvino:
            raise ValueError(
                f"optimize.weights: {optimize.weights} is a format of the OpenVINO export, which serve.engine torch, "
                "vllm and serve.gpus_per_replica do not use, and of optimize.targets, which is empty; use bf16, or "
                "add a target"
            )
        return self
