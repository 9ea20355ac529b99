"""python -m fastdgl_kernels: what runs here, why, and whether it is right."""

from .doctor import main

if __name__ == "__main__":
    raise SystemExit(main())
