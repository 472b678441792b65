"""What stages and runs leave in a store, for tests of what reads it."""

import base64
import gzip
import re
from typing import Any

from workflows.figures import EvaluateFigures, Form, FormFigures, OptimizeFigures, Part, PrepareFigures
from workflows.store import RunRecord

PREPARED = PrepareFigures(
    conversations=284, held_out_conversations=13, quarantined=0, tokens=8000, supervised_tokens=4000,
    held_out_tokens=500, truncated=0, longest=213,
).to_json()  # fmt: skip
EVALUATED = EvaluateFigures(
    base_loss=3.5, tuned_loss=3.0, loss_reduction=0.5, base_perplexity=33.115, tuned_perplexity=20.086,
    scored_tokens=624, passed=True, verdict="passed: lower by 0.5",
).to_json()  # fmt: skip
COMPARED = {"perplexity": 5.3321, "perplexity_increase": 0.0016, "greedy_agreement": 0.9728}
OPTIMIZED = OptimizeFigures(
    openvino=Part("too small"), checkpoint_perplexity=5.3239, held_out_tokens=624,
    forms=(FormFigures(form=Form.MODEL, weights="bf16", size_mb=272.6, load_s=1.04, **COMPARED),),
).to_json()  # fmt: skip


def run_record(**fields: Any) -> RunRecord:
    """A finished run of pipeline `shop`, with these fields."""
    plain = {
        "run": "run-0", "pipeline": "shop", "to": "deploy", "status": "finished", "started": "2026-01-01",
        "ended": "2026-01-02", "host": "here", "process": 1, "spec": {}, "stages": {},
    }  # fmt: skip
    return RunRecord.from_json({**plain, **fields})


def unpacked(page: str, name: str) -> str:
    """What a page holds compressed in the script of this id."""
    found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', page)
    assert found, f"the page has no {name}"
    return gzip.decompress(base64.b64decode(found[1])).decode()
