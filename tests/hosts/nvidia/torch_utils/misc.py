def profiled_function(function):
    def run(*args, **kwargs):
        return function(*args, **kwargs)

    run.__name__ = function.__name__
    return run
