"""What is wrong with images, as a sentence."""


from ..sentences import printable


class DatasetError(ValueError):
    """What is wrong with a dataset, in one sentence for the one who brought it."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class LabelsMissing(DatasetError):
    """A dataset has no labels where they were asked for; to go on without them is for the caller to offer."""


def cause(error: Exception) -> str:
    """An exception as part of a sentence: its type and, in one line, its words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
