"""The static gate: every kernel at StyleGAN2's real shapes, compiled without a GPU, read, priced and judged.

    python -m bench.static

No figure here was measured on a GPU.
"""
