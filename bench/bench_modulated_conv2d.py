"""The modulated layer, whole and kernel by kernel, on the layers of both networks."""

OPERATORS = ("modulated layer", "convolution", "resampling convolution", "tail", "scale", "dot", "to_rgb")


def bench_modulated_conv2d(benchmark, turn):
    benchmark(turn)
