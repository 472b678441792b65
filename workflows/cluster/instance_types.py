"""CPUs and GPUs of AWS instance types, for cluster files without `resources`: `ray up` asks AWS for them.

aws_size("g6.4xlarge")      # InstanceSize(cpus=16, gpus=1, gpu_memory_gb=24)
"""

import re
from dataclasses import dataclass

# Older families, and those for high-performance computing, whose sizes have other numbers of CPUs.
_IRREGULAR = re.compile(r"(m1|m2|c1|cc1|cc2|cg1|cr1|hs1|hi1|hpc\w+|mac\w+)\.")
_IRREGULAR_CPUS = {"c4.8xlarge": 36, "d2.8xlarge": 36, "t2.nano": 1, "t2.micro": 1, "t2.small": 1}
_TYPE = re.compile(r"([a-z][a-z0-9-]*\d[a-z0-9-]*)\.(nano|micro|small|medium|large|(\d*)xlarge)")

_ONE_TO_EIGHT = {"": 1, "2": 1, "4": 1, "8": 1, "16": 1, "12": 4, "24": 4, "48": 8}
# GPUs by the factor before `xlarge`, and the memory of one in GB.
_WITH_GPUS: dict[str, tuple[dict[str, int], float]] = {
    "p3": ({"2": 1, "8": 4, "16": 8}, 16.0),
    "p3dn": ({"24": 8}, 32.0),
    "p4d": ({"24": 8}, 40.0),
    "p4de": ({"24": 8}, 80.0),
    "p5": ({"4": 1, "48": 8}, 80.0),
    "p5e": ({"48": 8}, 141.0),
    "p5en": ({"48": 8}, 141.0),
    "g4dn": ({"": 1, "2": 1, "4": 1, "8": 1, "16": 1, "12": 4}, 16.0),
    "g5": (_ONE_TO_EIGHT, 24.0),
    "g6": (_ONE_TO_EIGHT, 24.0),
    "gr6": ({"4": 1, "8": 1}, 24.0),
    "g6e": (_ONE_TO_EIGHT, 48.0),
}
# Families that begin like these and are not in the table have GPUs too.
_HAS_GPUS = re.compile(r"[pg]r?\d")


@dataclass(frozen=True)
class InstanceSize:
    """The size of an instance type."""

    cpus: float
    gpus: float
    gpu_memory_gb: float | None
    """of one GPU"""


def aws_size(instance_type: str) -> InstanceSize | None:
    """The size of an AWS instance type; None if it is not known here."""
    found = _TYPE.fullmatch(instance_type)
    if found is None or _IRREGULAR.match(instance_type):
        return None
    family, size, factor = found.groups()
    cpus = _IRREGULAR_CPUS.get(instance_type) or _cpus(family, size, factor)
    if family in _WITH_GPUS:
        gpus, memory = _WITH_GPUS[family]
        return InstanceSize(cpus, gpus[factor], memory) if factor in gpus else None
    return None if _HAS_GPUS.match(family) else InstanceSize(cpus, 0, None)


def _cpus(family: str, size: str, factor: str | None) -> int:
    if factor is not None:
        return 4 * int(factor or 1)
    return 1 if size == "medium" and not family.startswith("t") else 2
