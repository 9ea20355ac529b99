"""How many operations a piece of code launches, by name."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts operations by name, but for those that only look at a tensor in another way."""

    def __enter__(self):
        self.counts = Counter()
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if not operation.is_view and operation.namespace == "aten":
            self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))
