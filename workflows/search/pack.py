"""How many trials of a search a worker group trains together (`tune.pack`)."""

from models.base.load import known_folder
from models.errors import RayconteurError
from workflows.spec import PipelineSpec
from workflows.spec.constraints import parse_constraint
from workflows.spec.space import Values, combinations, with_values
from workflows.spec.tune import SUITE, TuneSpec
from workflows.training.steps import PASS_TOKENS

_MAX_AUTO = 8


def pack_of(spec: PipelineSpec) -> int:
    """The number of trials that share each worker group; raises RayconteurError if these trials cannot share one."""
    tune = spec.tune
    assert tune is not None
    if tune.pack == 1:
        return 1
    why_not = _why_not(spec)
    if tune.pack == "auto":
        fill = 1 if why_not or known_folder(spec.base_model) is None else PASS_TOKENS // _largest_pass(spec)
        return max(1, min(_MAX_AUTO, fill, _most_at_once(spec)))
    if why_not:
        raise RayconteurError(f"tune.pack: got {tune.pack}, but {why_not}; leave tune.pack out")
    return tune.pack


def why_not_with(spec: PipelineSpec, values: Values) -> str:
    """Why a trial with these values cannot join the packs of a search; empty if it can."""
    return _why_not_train(with_values(spec, values))


def own_figures(tune: TuneSpec) -> list[str]:
    """The figures of a search that a pack would measure of all its members together: times and memory."""
    figures = [*tune.metric, *(parse_constraint(text).figure for text in tune.constraints)]
    return [figure for figure in figures if not figure.startswith((SUITE, "held_out_"))]


def _why_not(spec: PipelineSpec) -> str:
    """Why trials of this search cannot be packed; empty if they can."""
    tune = spec.tune
    assert tune is not None
    if tune.scheduler.name == "population":
        return "the members of a population copy each other's optimizer states"
    if tune.searcher.name == "mixture":
        return "a search over mixtures trains small models whole"
    if own := own_figures(tune):
        return f"{own[0]} measures a trial on its own"
    if spec.data.new_tokens:
        return "data.new_tokens are trained as rows of the base model"
    trials = [spec, *(with_values(spec, values) for values in combinations(spec))]
    reasons = [reason for trial in trials if (reason := _why_not_train(trial))]
    return reasons[0] if reasons else _why_not_base(spec)


def _why_not_train(spec: PipelineSpec) -> str:
    train = spec.train
    reasons = {
        "only LoRA adapters share a base model (train.adapter)": train.adapter is None,
        "train.objective adversarial trains two models": train.objective.name == "adversarial",
        "train.batch_tokens auto measures the memory of one training": train.batch_tokens == "auto",
        "train.zero.stage 3 and offload distribute the base model": train.zero.stage == 3 or train.zero.offload,
        "train.deepspeed has options, and packed trials have an optimizer of their own": train.deepspeed,
        "DoRA changes the base model's weights (train.adapter.method)": (
            train.adapter is not None and train.adapter.method == "dora"
        ),
        "the base model is quantized (train.adapter.quantize)": train.adapter is not None and train.adapter.quantize,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _why_not_base(spec: PipelineSpec) -> str:
    """Asks a model of the base's architecture without weights."""
    folder = known_folder(spec.base_model)
    if folder is None:
        return ""  # not known; the workers see it
    from models.base import adapters
    from models.base.packing_check import config_of, reading_of
    from models.base.sizes import empty_model
    from models.training.pack import why_not_packed

    if (how := reading_of(folder).how) != "packed":
        return f"the base model reads conversations {how}"
    assert spec.train.adapter is not None
    try:
        settings = spec.train.adapter.arguments()
        return why_not_packed(adapters.attach(empty_model(config_of(folder)), **settings, base=spec.base_model))
    except RayconteurError as error:
        return str(error)


def _largest_pass(spec: PipelineSpec) -> int:
    return max(with_values(spec, values).train.pass_tokens for values in combinations(spec))


def _most_at_once(spec: PipelineSpec) -> int:
    """TPE chooses by the trials that have ended, so few may run at once."""
    tune = spec.tune
    assert tune is not None
    return (tune.trials or 10 * _MAX_AUTO) // 10 if tune.searcher.name == "tpe" else _MAX_AUTO
