"""Make a release of a checkpoint: merge, quantise, export and measure."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import RayconteurError
from models.trees import COLUMNS, sequences_of
from workflows.corpus.new_model import discriminator_base
from workflows.figures import Form, FormFigures, OptimizeFigures, Part
from workflows.record import JsonObject
from workflows.spec import PipelineSpec
from workflows.stage import DISCRIMINATOR
from workflows.store import Store

if TYPE_CHECKING:
    from models.export.release import Figures, Probe
    from serve.engines.base import Engine


_PROBE_CONVERSATIONS = 16

_CALIBRATION_CONVERSATIONS = 32

_MAX_PROMPT_TOKENS = 128

# Number of calibration conversations for 4-bit formats.
_ROUNDED = "rounded"

# The export with which a quantised one is compared; not released.
_YARDSTICK = Form.OPENVINO_BF16


def make_release(raw_spec: JsonObject, store_uri: str, checkpoint: str, corpus: str, key: str) -> OptimizeFigures:
    """Write the release of the training `checkpoint`, and measure its formats on conversations of `corpus`."""
    from models.base.discriminator import release_discriminator
    from models.base.load import resolve
    from models.export.release import release, round_to_steps
    from workflows.corpus.reader import open_split

    spec, store = PipelineSpec.model_validate(raw_spec), Store(store_uri)

    def read(split: str, most: int) -> list[Any]:
        rows = open_split(store, "prepare", corpus, "corpus", split, [*COLUMNS])
        return [sequence for row in rows.take(min(most, len(rows))) for sequence in sequences_of(row)]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        probe, figures = release(
            resolve(spec.base_model),
            store.local_folder("train", checkpoint, "model"),
            folder / "model",
            spec.optimize.weights,
            read("held_out", _PROBE_CONVERSATIONS),
            spec.optimize.max_perplexity_increase,
        )
        forms = {Form.MODEL: figures}
        if spec.optimize.weights == "int4":
            round_to_steps(folder / "model", folder / _ROUNDED, read("train", _CALIBRATION_CONVERSATIONS))
        openvino = _export(spec, folder, probe, forms)
        _write_targets(spec, folder, probe, forms)
        for form, its_speed in _speeds(spec, folder, probe, forms).items():
            forms[form] |= its_speed
        if store.is_folder(store.path("train", checkpoint, DISCRIMINATOR)):
            checkpoint_of_it = store.local_folder("train", checkpoint, DISCRIMINATOR)
            release_discriminator(discriminator_base(spec), checkpoint_of_it, folder / DISCRIMINATOR)
            store.add_folder(str(folder / DISCRIMINATOR), "optimize", key, DISCRIMINATOR)
        for form in forms:
            if form != _YARDSTICK:
                store.add_folder(str(folder / form), "optimize", key, form)
    return OptimizeFigures(
        openvino=openvino,
        checkpoint_perplexity=round(probe.perplexity, 4),
        held_out_tokens=len(probe.batch.targets),
        forms=tuple(FormFigures(form=form, kept=form != _YARDSTICK, **row) for form, row in forms.items()),
    )


def _export(spec: PipelineSpec, folder: Path, probe: "Probe", forms: dict[Form, "Figures"]) -> Part:
    """Add the OpenVINO export to `forms`, if it is possible."""
    from models.export.openvino_export import folder_refusal

    weights = spec.optimize.weights
    if not spec.serve.may_use_openvino:
        return Part("serve.engine and serve.gpus_per_replica do not use it")
    refusal = folder_refusal(folder / "model")
    if refusal is None:
        forms |= _exports(spec, folder, probe)
        return Part()
    if spec.serve.engine == "openvino":
        raise RayconteurError(f"serve.engine: openvino cannot serve this model: {refusal}; use auto or torch")
    if spec.optimize.is_rounded and not spec.optimize.targets:
        raise RayconteurError(
            f"optimize.weights: {weights} needs an OpenVINO export or a target, and there is none: {refusal}; "
            "take bf16"
        )
    return Part(refusal)


def _exports(spec: PipelineSpec, folder: Path, probe: "Probe") -> dict[Form, "Figures"]:
    """The OpenVINO export; if it is quantised, after the export with which it is compared."""
    from models.export.release import release_for_openvino

    weights, model, yardstick = spec.optimize.weights, folder / "model", folder / _YARDSTICK
    if not spec.optimize.is_rounded:
        found = release_for_openvino(model, {weights: folder / "openvino"}, weights, probe)
    elif weights == "int8":
        found = release_for_openvino(model, {"bf16": yardstick, weights: folder / "openvino"}, weights, probe)
    else:
        found = release_for_openvino(model, {"bf16": yardstick}, weights, probe)
        found |= release_for_openvino(folder / _ROUNDED, {weights: folder / "openvino"}, weights, probe)
    return {Form.OPENVINO if name == weights else _YARDSTICK: figures for name, figures in found.items()}


def _write_targets(spec: PipelineSpec, folder: Path, probe: "Probe", forms: dict[Form, "Figures"]) -> None:
    from models.export.release import release_as_gguf, release_for_vllm

    weights = spec.optimize.weights
    model = folder / (_ROUNDED if weights == "int4" else "model")
    if "vllm" in spec.optimize.targets:
        forms[Form.VLLM] = release_for_vllm(model, folder / "vllm", weights, probe)
    if "gguf" in spec.optimize.targets:
        forms[Form.GGUF] = release_as_gguf(model, folder / "gguf", weights, spec.name, probe)


def _speeds(
    spec: PipelineSpec, folder: Path, probe: "Probe", forms: dict[Form, "Figures"]
) -> dict[Form, dict[str, float]]:
    """The speeds of the formats that our engines load."""
    from serve.engines.openvino import OpenVINOEngine
    from serve.engines.torch import TorchEngine
    from workflows.release.speed import measure

    threads = max(1, int(spec.optimize_cpus))
    engines: dict[Form, Callable[[], Engine]] = {
        Form.MODEL: lambda: TorchEngine(folder / "model", num_threads=threads)
    }
    for form in (_YARDSTICK, Form.OPENVINO):
        if form in forms:
            engines[form] = lambda form=form: OpenVINOEngine(folder / form, num_threads=threads)  # type: ignore[misc]
    input_ids, supervised = probe.conversations[0]
    prompt = input_ids[: max(1, list(supervised).index(True))] if any(supervised) else input_ids
    return measure(engines, prompt[-_MAX_PROMPT_TOKENS:])
