"""Proving the kernels on the machine they run on, and the verdict that "auto" then reads. Nothing here runs by itself.

`python -m fastdgl_kernels certify` does it by hand:

    from fastdgl_kernels.certify import certify, recording

    with fastdgl_kernels.warm_up(), recording() as calls:
        step()                              # nothing is computed; see `warm_up`
    certify("cuda", calls)
"""

from .calls import Call, recording
from .verdict import Verdict, VerdictError

__all__ = ["Call", "CertificationError", "Verdict", "VerdictError", "certify", "recording"]


def __getattr__(name: str):
    # processes and checks are imported by who certifies, and not by who reads a verdict
    if name in ("certify", "CertificationError"):
        from . import certification

        return getattr(certification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
