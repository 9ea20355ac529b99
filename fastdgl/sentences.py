"""What is said of a file, in words that the file itself may have chosen."""


# characters of a sentence
LONGEST = 2000


def printable(message: str) -> str:
    """Return the message in one line of at most LONGEST characters, and nothing that a terminal would obey, whatever names a file gives."""
    # a file may give a name of many megabytes
    words = " ".join(message[:4 * LONGEST].split())
    words = words if len(words) <= LONGEST else words[:LONGEST] + "..."
    return "".join(c if c.isprintable() else "?" for c in words)
