"""HTTP constants that the front and the replicas share: header names, request ids, the maximum body size."""

import re
from uuid import uuid4

REQUEST_ID = "x-request-id"

LEASE = "rayconteur-lease"
"""the header with the id of a lease, with which one request may use a replica (serve/front/leases.py)"""

MAX_BODY_BYTES = 4 << 20
"""of one request, after decompression"""

DIRECT = "rayconteur.direct"
"""in a request's scope: the server's own `send`, which streams use after their headers"""

_GIVEN_ID = re.compile(r"[!-~]{1,128}")


def request_id_of(given: str | None) -> str:
    """The client's request id, if it is printable and has at most 128 characters, else a new one."""
    return given if given is not None and _GIVEN_ID.fullmatch(given) else f"req-{uuid4().hex}"
