"""`python -m fastdgl COMMAND`, as `fastdgl COMMAND`; so also `torchrun -m fastdgl train`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="fastdgl")
