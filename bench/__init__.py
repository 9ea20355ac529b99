"""How fast, and how one knows: static/ without a GPU, gpu/ with one, and bench_*.py for pytest-benchmark."""
