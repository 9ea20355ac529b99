"""fastdgl: train StyleGAN2, and compress it under its own discriminator's guidance (DGL)."""

__version__ = "0.1.0"

__all__ = ["load_generator"]


def __getattr__(name: str) -> object:
    # torch is not imported before it is needed
    if name == "load_generator":
        from .checkpoints import load_generator

        return load_generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
