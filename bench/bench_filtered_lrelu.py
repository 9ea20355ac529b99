"""filtered_lrelu, forward and differentiated, as StyleGAN3 has it."""

OPERATORS = ("filtered_lrelu",)


def bench_filtered_lrelu(benchmark, turn):
    benchmark(turn)
