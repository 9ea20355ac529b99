"""python -m fastdgl_kernels: what runs here, why, and whether it is right; `certify` proves the kernels on this machine."""

import sys


def main() -> int:
    """Run `certify` or the doctor."""
    if sys.argv[1:2] == ["certify"]:
        from .certify.command import main as certify

        return certify(sys.argv[2:])
    from .doctor import main as diagnose

    return diagnose()


if __name__ == "__main__":
    if not __package__:
        # run as `python FOLDER`, which is how a copy is reached that no import finds: imports need a package
        import importlib.util
        from pathlib import Path

        here = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(here.name.replace("-", "_"), here / "__init__.py")
        __package__ = spec.name
        sys.path[:] = [p for p in sys.path if Path(p).resolve() != here]
        sys.modules[__package__] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[__package__])
    raise SystemExit(main())
