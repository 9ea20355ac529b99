"""Count what a training step of StyleGAN2 launches on a GPU, without one: `python -m bench.launches`.

Kernels, bytes and FLOPs follow from shapes alone, so the networks have none but these (PyTorch's "meta" device). A roofline
prices them: predictions, not measurements.
"""
