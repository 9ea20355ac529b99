"""scale_shift_act, forward and differentiated, on the batch norms of BigGAN's generator."""

OPERATORS = ("scale_shift_act",)


def bench_scale_shift_act(benchmark, turn):
    benchmark(turn)
