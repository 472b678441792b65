"""The chat page: the files of serve/api/page/ as one HTML document, and its Content-Security-Policy.

It is a single document: during an update, a browser could load separate files from replicas of different releases.
"""

import base64
import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPT = re.compile(r'<script src="([\w.]+)"></script>')


def chat_page() -> tuple[str, str]:
    """The document, and a Content-Security-Policy that allows only these scripts and connections to the endpoint,
    even if the page has a bug."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inlined(tag: str, name: str) -> str:
        text = (FOLDER / name).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    html = _STYLE.sub(lambda found: inlined("style", found[1]), html)
    html = _SCRIPT.sub(lambda found: inlined("script", found[1]), html)
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return html, policy
