"""NVIDIA's apex as far as tests need it, or what else goes by its name."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAND_IN = Path(__file__).parent / "stand_in"
NAMES = ("apex", "amp_C")


@contextmanager
def apex_in(folder: Path | None = STAND_IN) -> Iterator[None]:
    """Inside, `import apex` and `import amp_C` find what is in `folder`, and DeepSpeed has found it too; None for nothing at all.

    DeepSpeed looks for apex when it is imported, which here is long before.
    """
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in NAMES}
    engine = sys.modules.get("deepspeed.runtime.engine")
    before = None if engine is None else (engine.APEX_INSTALLED, getattr(engine, "apex", None))
    if folder is not None:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        if engine is not None and folder == STAND_IN:
            engine.apex, engine.APEX_INSTALLED = importlib.import_module("apex"), True
        yield
    finally:
        if folder is not None:
            sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
            del sys.modules[name]
        sys.modules.update(kept)
        if before is not None:
            engine.APEX_INSTALLED, engine.apex = before
