"""What the front and the replicas share of HTTP: names of headers, ids of requests, the largest body."""

import re
from uuid import uuid4

REQUEST_ID = "x-request-id"

LEASE = "rayconteur-lease"
"""the header with the id of a lease: what one request may ask of a replica (serve/front/leases.py)"""

MAX_BODY_BYTES = 4 << 20
"""of one request, after decompression"""

DIRECT = "rayconteur.direct"
"""in a request's scope: the server's own `send`, for the many pieces of a stream after its headers"""

_GIVEN_ID = re.compile(r"[!-~]{1,128}")


def request_id_of(given: str | None) -> str:
    """The client's own, if it is printable and has at most 128 characters, else a new one."""
    return given if given is not None and _GIVEN_ID.fullmatch(given) else f"req-{uuid4().hex}"
