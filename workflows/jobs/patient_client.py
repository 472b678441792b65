"""Ray's jobs client with a time limit for each request; Ray's own waits minutes for a machine that is off."""

from typing import Any

from ray.job_submission import JobSubmissionClient

# To connect, and between two pieces of an answer.
_TIMEOUT_S = (10.0, 120.0)


class PatientClient(JobSubmissionClient):  # type: ignore[misc]
    """As Ray's client."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": _TIMEOUT_S, **options})
