"""At home in other people's code: our operators under their names and signatures, and `patch`, which puts them there.

Nothing else in the package knows of other codebases, and nothing here computes: it hands on to the operators.
"""

from .patching import patch, unpatch

__all__ = ["patch", "unpatch"]
