"""bias_act, forward and differentiated, on the layers of both networks."""

OPERATORS = ("bias_act",)


def bench_bias_act(benchmark, turn):
    benchmark(turn)
