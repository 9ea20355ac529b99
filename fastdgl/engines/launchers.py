"""What has started this rank."""

import os
from pathlib import Path

NAMES = {b"deepspeed", b"deepspeed.pt", b"deepspeed.launcher.runner"}


def deepspeed_command() -> int | None:
    """The process of the `deepspeed` command that has started this rank on its own machine; None if none has, or it has ended.

    It starts a launcher, which starts the ranks. Where /proc does not tell (it does on Linux), None.
    """
    try:
        launcher = Path(f"/proc/{os.getppid()}/stat").read_text()
        # pid (name) state ppid; the name may be anything
        command = int(launcher.rpartition(")")[2].split()[1])
        words = Path(f"/proc/{command}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return command if any(os.path.basename(word) in NAMES for word in words) else None
