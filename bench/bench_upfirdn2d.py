"""upfirdn2d, forward and differentiated, on the layers of both networks."""

OPERATORS = ("upfirdn2d",)


def bench_upfirdn2d(benchmark, turn):
    benchmark(turn)
