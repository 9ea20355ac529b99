"""How fast, and how one knows: static/ without a GPU."""
