"""Why a cluster's dashboard cannot be used, as sentences."""

import json

from workflows.cluster.connection import token_refused
from workflows.cluster.errors import ClusterError
from workflows.jobs.package import about, supported_ray

_GIVE_HEADER = "give the header that it wants with --header 'NAME: VALUE' or RAY_JOB_HEADERS"


class UnknownJob(ClusterError):
    """The cluster has no such job."""


def not_supported(address: str, there: str) -> str:
    """The error message for a cluster with another Ray or Python than ours."""
    return (
        f"the cluster at {address} runs {there}; rayconteur {about()['Version']} works with Ray {supported_ray()} "
        f"and Python {about()['Requires-Python']}; start the cluster from the image of clusters/Dockerfile or with "
        "cluster.yaml"
    )


def why_no_answer(address: str, error: Exception) -> str:
    """The error message for a request to a dashboard that has failed."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import HTTPError, SSLError

    if isinstance(error, AuthenticationError):  # of any 401 or 403
        return f"{token_refused(address)}; if a proxy before the cluster refuses, {_GIVE_HEADER}"
    if isinstance(error, SSLError) or isinstance(error.__context__, SSLError):
        return (
            f"the certificate of {address} is not trusted ({first_line(error.__context__ or error)}); give the "
            "certificates of its authority with --ca-bundle FILE (or REQUESTS_CA_BUNDLE)"
        )
    if isinstance(error, RuntimeError | HTTPError):  # it answers with an error
        return f"the cluster at {address} answers with an error: {first_line(error)}"
    if isinstance(error, json.JSONDecodeError | KeyError):  # no JSON, or another one
        return (
            f"what answers at {address} is not a Ray dashboard ({first_line(error)}); give --address its URL or, if "
            f"it is a proxy's login page, {_GIVE_HEADER}"
        )
    return (
        f"no Ray dashboard answers at {address} ({first_line(error)}); give --address the URL of the head's "
        "dashboard, such as http://127.0.0.1:8265 (from another network, `ray dashboard cluster.yaml` forwards it)"
    )


def first_line(error: BaseException) -> str:
    """The beginning of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
