"""Has the name of a module that is known, and another function in it."""


def bias_act(x, bias, activation="relu"):
    return x
