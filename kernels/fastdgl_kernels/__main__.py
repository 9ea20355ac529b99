"""python -m fastdgl_kernels: what runs here, why, and whether it is right; `certify` proves the kernels on this machine."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["certify"]:
        from .certify.command import main

        raise SystemExit(main(sys.argv[2:]))
    from .doctor import main as diagnose

    raise SystemExit(diagnose())
