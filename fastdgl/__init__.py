"""fastdgl: train StyleGAN2, and compress it under its own discriminator's guidance (DGL)."""

__version__ = "0.1.0"
