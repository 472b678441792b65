"""The order of the stages, and the settings that decide the output of each.

prepare -> (reference ->) (tune ->) train -> evaluate -> optimize -> deploy
"""

from dataclasses import replace

import pyarrow as pa

from models.base import load as base
from models.files import open_uri
from workflows.corpus.files.sources import source_files
from workflows.corpus.user_filter import UserFilter
from workflows.endpoint.knowledge import passages_key, read_knowledge
from workflows.figures import OptimizeFigures
from workflows.judge.settings import find_release, judge_settings
from workflows.lm_eval.files import lm_eval_settings
from workflows.record import JsonObject
from workflows.search.warm_start import tune_fields
from workflows.spec import NEW_MODEL, AdversarialSpec, DistillRepliesSpec, DistillSpec, PipelineSpec, SpinSpec
from workflows.spec.tune import SUITE
from workflows.stage import STAGE_NAMES, Context, Keys, Stage, StageFailed
from workflows.store import Artifact, Store, fingerprint, release_in_service, without_secrets
from workflows.suites.settings import suite_settings


def _prepare_settings(spec: PipelineSpec) -> JsonObject:
    files = [[file.fingerprint, file.limit] for file in source_files(spec)]
    section = {**spec.data.result_fields(), "sources": files}
    if spec.data.chat_template is not None:
        section["chat_template"] = _fingerprint_of("data.chat_template", spec.data.chat_template)
    section |= _checks_settings(spec)
    examples = spec.train.objective.examples
    return {"data": section, "base_model": _base(spec), "examples": examples}


def _checks_settings(spec: PipelineSpec) -> JsonObject:
    """The content of the files and of the code that `data` names, where it names any."""
    data = spec.data
    found: dict[str, object] = {}
    if data.filter is not None:
        found["filter"] = UserFilter.of(data.filter).key
    if data.filters.word_list is not None:
        words = _fingerprint_of("data.filters.word_list", data.filters.word_list)
        found["filters"] = {**data.filters.result_fields(), "word_list": words}
    if data.deduplicate.compare == "replies":  # in older stores, all replies of a conversation were one text
        found["deduplicate"] = {**data.deduplicate.result_fields(), "compare": "single replies"}
    against = data.check_against
    if against != type(against)():  # with the defaults, evaluate's questions are only counted
        named = against.by_field
        if spec.evaluate.questions is not None:
            named["evaluate.questions"] = spec.evaluate.questions
        contents = [_fingerprint_of(field, file) for field, file in named.items()]
        found["check_against"] = {**against.result_fields(), "files": contents}
    return found


def _base(spec: PipelineSpec) -> object:
    """What decides the base model's weights and tokens; for a new model also the data, through `prepare`."""
    if spec.base_model == NEW_MODEL:
        return {NEW_MODEL: spec.new_model.result_fields()}
    return base.identity(spec.base_model)


def _reference_settings(spec: PipelineSpec) -> JsonObject:
    """Without the settings that only training uses, so that a change of beta computes no value again."""
    objective = spec.train.objective
    settings: dict[str, object] = {"computes": objective.reference, "precision": spec.train.precision}
    if isinstance(objective, DistillSpec):
        return {**settings, "model": base.identity(objective.teacher), "top_k": objective.top_k}
    if isinstance(objective, DistillRepliesSpec):
        most = {"max_reply_tokens": objective.max_reply_tokens}
        return {**settings, "model": base.identity(objective.teacher), **most}
    if isinstance(objective, SpinSpec):
        settings["max_reply_tokens"] = objective.max_reply_tokens
    return {**settings, "model": _base(spec)}


def _tune_settings(spec: PipelineSpec) -> JsonObject:
    assert spec.tune is not None
    settings = {"tune": tune_fields(spec.tune), **_train_settings(spec)}
    if spec.tune.proxy is not None:
        settings["proxy"] = base.identity(spec.tune.proxy.base_model)
    named = any(metric.startswith(SUITE) for metric in spec.tune.metric)
    return {**settings, "suites": suite_settings(spec.evaluate)} if named else settings


def _sampling_search_settings(spec: PipelineSpec) -> JsonObject:
    assert spec.tune is not None
    return {
        "tune": spec.tune.result_fields(),
        "sampling": spec.serve.sampling.result_fields(),
        "suites": suite_settings(spec.evaluate),
        **_knowledge_settings(spec),
    }


def _knowledge_settings(spec: PipelineSpec) -> dict[str, object]:
    """What the endpoint finds for prompts; empty without `serve.knowledge`."""
    if (knowledge := spec.serve.knowledge) is None:
        return {}
    return {"knowledge": [passages_key(read_knowledge(knowledge)), knowledge.passages, knowledge.min_share]}


def _train_settings(spec: PipelineSpec) -> JsonObject:
    settings = {"train": spec.train.result_fields(), "base_model": _base(spec)}
    mixture = spec.data.mixture_fields()
    return settings if mixture is None else {**settings, "mixture": mixture}


def _evaluate_settings(spec: PipelineSpec) -> JsonObject:
    section = spec.evaluate.result_fields()
    if not isinstance(spec.train.objective, AdversarialSpec):
        del section["pair"]
    if spec.evaluate.questions is not None:
        section["questions"] = _fingerprint_of("evaluate.questions", spec.evaluate.questions)
    if spec.evaluate.suites:
        section["suites"] = suite_settings(spec.evaluate)
    if spec.evaluate.judge is not None:
        section["judge"] = judge_settings(spec.evaluate.judge)
    section |= _knowledge_settings(spec)
    if spec.evaluate.lm_eval:
        section["lm_eval"] = lm_eval_settings(spec.evaluate)
    return {"evaluate": section}


def _releases(spec: PipelineSpec, store: Store, inputs: Keys) -> JsonObject:
    """The release that the checkpoint is compared with, and the one that judges, where that is asked for."""
    found: dict[str, object] = {}
    if spec.evaluate.compare_with == "service":
        release = release_in_service(store, spec.name, inputs["train"])
        found["service"] = None if release is None else release.key
    if spec.evaluate.judge is not None and spec.evaluate.judge.release is not None:
        found["judge"] = find_release(store, spec.evaluate.judge.release).key
    return found


def _fingerprint_of(field: str, uri: str) -> str:
    """A hash of the content of a file that the spec names; raises StageFailed with the field's name."""
    try:
        return fingerprint(*open_uri(uri, patient=False))
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}: cannot read {without_secrets(uri)}: {error}") from error


def _optimize_settings(spec: PipelineSpec) -> JsonObject:
    return {"optimize": spec.optimize.result_fields(), "for_openvino": spec.serve.may_use_openvino}


def _deploy_settings(spec: PipelineSpec) -> JsonObject:
    return {"serve": spec.serve.result_fields()}


def _deploy_key(spec: PipelineSpec, inputs: Keys) -> str:
    from workflows.endpoint.status import deployment_key

    return deployment_key(spec, inputs["optimize"], inputs.get("tune"))


def _living_endpoint(spec: PipelineSpec, store: Store, inputs: Keys) -> Artifact | None:
    from workflows.endpoint.status import living_endpoint

    return living_endpoint(spec, store, inputs["optimize"], inputs.get("tune"))


def _deploy_detail(context: Context) -> str:
    from workflows.endpoint.application import chosen_engine
    from workflows.endpoint.status import url_of

    release, serve = context.inputs["optimize"], context.spec.serve
    engine, reason = chosen_engine(serve, OptimizeFigures.from_json(release.figures).openvino)
    return f"release {release.key} to {url_of(serve)} (Ray Serve); engine {engine}: {reason}"


STAGES = (
    Stage("prepare", 3, (), _prepare_settings, "conversations to token shards (Ray Data)"),
    Stage(
        "reference", 1, ("prepare",), _reference_settings, "reference values for the objective (Ray Data)",
        is_needed=lambda spec: spec.train.objective.reference != "none",
    ),
    Stage(
        "tune", 1, ("prepare", "reference"), _tune_settings, "hyperparameter search over train (Ray Tune)",
        is_needed=lambda spec: spec.tune is not None,
    ),
    Stage("train", 1, ("prepare", "reference", "tune"), _train_settings, "fine-tune (Ray Train, DeepSpeed)"),
    Stage(
        "evaluate", 1, ("prepare", "train"), _evaluate_settings, "compare tuned and base model (Ray Data)",
        stored=_releases,
    ),
    Stage("optimize", 3, ("train",), _optimize_settings, "checkpoint to release", also_reads=("prepare",)),
    Stage(
        "deploy", None, ("evaluate", "optimize"), _deploy_settings, "release to endpoint (Ray Serve)",
        key=_deploy_key, find=_living_endpoint, detail=_deploy_detail,
        not_found="no endpoint of this release answers",
    ),
)  # fmt: skip

assert tuple(stage.name for stage in STAGES) == STAGE_NAMES


def stages_of(spec: PipelineSpec) -> tuple[Stage, ...]:
    """The stages in the order of this pipeline. A search over `serve.sampling` follows the training, whose replies it
    compares, and decides the endpoint.
    """
    if not spec.searches_sampling:
        return STAGES
    by_name = {stage.name: stage for stage in STAGES}
    tune = replace(
        by_name["tune"], inputs=("train",), also_reads=("prepare",), settings=_sampling_search_settings,
        summary="search over serve.sampling",
    )  # fmt: skip
    by_name["train"] = replace(by_name["train"], inputs=("prepare", "reference"))
    by_name["deploy"] = replace(by_name["deploy"], inputs=(*by_name["deploy"].inputs, "tune"))
    del by_name["tune"]
    first = [by_name.pop(name) for name in ("prepare", "reference", "train")]
    return (*first, tune, *by_name.values())
