"""Filters that a Function keeps for its backward."""

from typing import NamedTuple

from torch import Tensor


class KeptFilter(NamedTuple):
    """A filter, and its version when it was kept.

    `save_for_backward` would pass it through the hooks of saved tensors (`torch.autograd.graph.saved_tensors_hooks`,
    checkpointing, offloading). Those return a copy, whose taps the kernels would read anew: a wait for the GPU.
    """

    f: Tensor | None
    version: int

    def get(self) -> Tensor | None:
        """Return the filter.

        Raises:
            RuntimeError: It was written to meanwhile.
        """
        if version(self.f) != self.version:
            raise RuntimeError(
                f"a filter of shape {tuple(self.f.shape)} was written to after the forward that its backward belongs to: "
                "expected the same taps in both; give the operator a copy, f.clone()"
            )
        return self.f


def keep_filter(f: Tensor | None) -> KeptFilter:
    """Return the filter with its version."""
    return KeptFilter(f, version(f))


def version(f: Tensor | None) -> int:
    """Return a number that grows when `f` is written to; 0 where PyTorch does not count."""
    return 0 if f is None or f.is_inference() else f._version
