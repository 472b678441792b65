"""What of suites decides the key of evaluate's artifact."""

import pyarrow as pa

from workflows.record import JsonObject
from workflows.spec import EvaluateSpec, SuiteSpec
from workflows.stage import StageFailed
from workflows.store import fingerprint, without_secrets
from workflows.suites.files import fields_of, suite_files, user_scorer
from workflows.suites.read import read_items


def suite_settings(evaluate: EvaluateSpec) -> list[JsonObject]:
    """Of each suite its fields, the content of its files, and the code of its scorer.

    Raises StageFailed for items that cannot be used: the key is needed before any stage runs, and a broken line must
    not be found after a training.
    """
    read_items(evaluate)
    return [_settings(suite, field) for field, suite in fields_of(evaluate)]


def _settings(suite: SuiteSpec, field: str) -> JsonObject:
    filesystem, files = suite_files(suite, field)
    try:
        contents = [fingerprint(filesystem, file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise StageFailed(f"{field}.path: cannot read {without_secrets(suite.path)}: {error}") from error
    user = user_scorer(suite, field)
    scorer = suite.scorer if user is None else user.key
    return {**suite.result_fields(), "path": contents, "name": suite.shown_name, "scorer": scorer}
