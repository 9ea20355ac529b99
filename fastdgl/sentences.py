"""What is said of a file, in words that the file itself may have chosen."""


# characters of a sentence
LONGEST = 2000


def printable(message: str) -> str:
    """Return the message in one line of at most LONGEST characters, and nothing that a terminal would obey, whatever names a file gives."""
    # a file may give a name of many megabytes; what was expected, and what to do, stand at the end
    half = LONGEST // 2
    words = " ".join((message if len(message) <= 8 * half else message[:4 * half] + message[-4 * half:]).split())
    words = words if len(words) <= LONGEST else words[:half] + "..." + words[-half:]
    return "".join(c if c.isprintable() else "?" for c in words)
