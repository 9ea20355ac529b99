"""What is said of a file, in words that the file itself may have chosen."""


def printable(message: str) -> str:
    """In one line, and nothing that a terminal would obey, whatever names a file gives."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
