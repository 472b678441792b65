"""Find the local files and the functions that a pipeline file names, and replace their paths."""

from collections.abc import Callable

from workflows.spec.objectives import TeacherSpec
from workflows.spec.pipeline import PipelineSpec
from workflows.spec.tune import OPTUNA, SQLITE, storage_file


def local_paths(spec: PipelineSpec) -> dict[str, str]:
    """The local files, folders and globs that a pipeline reads, by their dotted fields; no URIs and no Hub ids."""
    objective = spec.train.objective
    models = {"base_model": spec.base_model}
    if isinstance(objective, TeacherSpec):
        models["train.objective.teacher"] = objective.teacher
    if spec.tune and spec.tune.proxy:
        models["tune.proxy.base_model"] = spec.tune.proxy.base_model
    paths = {f"data.sources.{index}.path": source.path for index, source in enumerate(spec.data.sources)}
    data = spec.data
    named = {
        "evaluate.questions": spec.evaluate.questions,
        "data.chat_template": data.chat_template,
        "data.filters.word_list": data.filters.word_list,
    }
    if judge := spec.evaluate.judge:
        named |= {"evaluate.judge.prompt": judge.prompt, "evaluate.judge.labels": judge.labels}
    named |= data.check_against.by_field
    paths |= {field: path for field, path in named.items() if path}
    paths |= {f"evaluate.suites.{index}.path": suite.path for index, suite in enumerate(spec.evaluate.suites)}
    tasks = enumerate(spec.evaluate.lm_eval)
    paths |= {f"evaluate.lm_eval.{index}.task": entry.task for index, entry in tasks if entry.is_folder}
    paths |= {f"serve.adapters.{name}": path for name, path in spec.serve.adapters.items()}
    if knowledge := spec.serve.knowledge:
        paths["serve.knowledge.path"] = knowledge.path
    studies = enumerate(spec.tune.warm_start if spec.tune else [])
    paths |= {f"tune.warm_start.{index}": file for index, name in studies if (file := study_file(name))}
    paths |= {field: name for field, name in models.items() if name.startswith(("/", "./", "../", "~"))}
    return {field: path for field, path in paths.items() if "://" not in path and not path.startswith("hf:")}


def with_paths(spec: PipelineSpec, paths: dict[str, str]) -> PipelineSpec:
    """`spec` with these paths in the fields that `local_paths` returns."""
    sources = [
        source.model_copy(update={"path": paths.get(f"data.sources.{index}.path", source.path)})
        for index, source in enumerate(spec.data.sources)
    ]
    adapters = {name: paths.get(f"serve.adapters.{name}", path) for name, path in spec.serve.adapters.items()}
    knowledge = spec.serve.knowledge
    if knowledge is not None:
        path = paths.get("serve.knowledge.path", knowledge.path)
        knowledge = knowledge.model_copy(update={"path": path})
    objective = spec.train.objective
    if isinstance(objective, TeacherSpec):
        teacher = paths.get("train.objective.teacher", objective.teacher)
        objective = objective.model_copy(update={"teacher": teacher})
    tune = spec.tune
    if tune is not None and tune.proxy is not None:
        model = paths.get("tune.proxy.base_model", tune.proxy.base_model)
        tune = tune.model_copy(update={"proxy": tune.proxy.model_copy(update={"base_model": model})})
    suites = [
        suite.model_copy(update={"path": paths.get(f"evaluate.suites.{index}.path", suite.path)})
        for index, suite in enumerate(spec.evaluate.suites)
    ]
    judge = spec.evaluate.judge
    if judge is not None:
        prompt = paths.get("evaluate.judge.prompt", judge.prompt)
        labels = paths.get("evaluate.judge.labels", judge.labels)
        judge = judge.model_copy(update={"prompt": prompt, "labels": labels})
    tasks = [
        entry.model_copy(update={"task": paths.get(f"evaluate.lm_eval.{index}.task", entry.task)})
        for index, entry in enumerate(spec.evaluate.lm_eval)
    ]
    if tune is not None and tune.warm_start:
        named = enumerate(tune.warm_start)
        studies = [_with_study_file(name, paths.get(f"tune.warm_start.{index}")) for index, name in named]
        tune = tune.model_copy(update={"warm_start": studies})
    questions = paths.get("evaluate.questions", spec.evaluate.questions)
    evaluate = {"questions": questions, "suites": suites, "judge": judge, "lm_eval": tasks}
    files = [paths.get(field, file) for field, file in spec.data.check_against.by_field.items()]
    word_list = paths.get("data.filters.word_list", spec.data.filters.word_list)
    data = {
        "sources": sources,
        "chat_template": paths.get("data.chat_template", spec.data.chat_template),
        "check_against": spec.data.check_against.model_copy(update={"files": files}),
        "filters": spec.data.filters.model_copy(update={"word_list": word_list}),
    }
    return spec.model_copy(
        update={
            "base_model": paths.get("base_model", spec.base_model),
            "train": spec.train.model_copy(update={"objective": objective}),
            "data": spec.data.model_copy(update=data),
            "evaluate": spec.evaluate.model_copy(update=evaluate),
            "tune": tune,
            "serve": spec.serve.model_copy(update={"adapters": adapters, "knowledge": knowledge}),
        }
    )


def study_file(name: str) -> str:
    """The file of an Optuna study in `tune.warm_start`; empty for a study on a server and for a search."""
    return storage_file(name.removeprefix(OPTUNA).partition("#")[0]) if name.startswith(OPTUNA) else ""


def _with_study_file(name: str, file: str | None) -> str:
    if file is None:
        return name
    storage, mark, study = name.removeprefix(OPTUNA).partition("#")
    scheme = SQLITE if storage.startswith(SQLITE) else ""
    return f"{OPTUNA}{scheme}{file}{mark}{study}"


def with_code(spec: PipelineSpec, rename: Callable[[str], str]) -> PipelineSpec:
    """`spec` with other names for the Python functions of `data.filter` and of the scorers of suites."""
    keep = spec.data.filter
    suites = [
        suite.model_copy(update={"scorer": rename(suite.function)}) if suite.function else suite
        for suite in spec.evaluate.suites
    ]
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"filter": rename(keep) if keep else None}),
            "evaluate": spec.evaluate.model_copy(update={"suites": suites}),
        }
    )
