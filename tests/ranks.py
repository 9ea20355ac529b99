"""What tests with several ranks share."""

import socket


def free_port() -> int:
    """A port on which nothing listens now, for the ranks to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
