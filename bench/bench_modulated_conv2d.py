"""The modulated layer, whole and kernel by kernel, on the layers of both networks."""

OPERATORS = ("modulated layer", "convolution", "resampling convolution", "tail", "scale", "dot")


def bench_modulated_conv2d(benchmark, turn):
    benchmark(turn)
