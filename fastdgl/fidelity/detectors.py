"""What sees features and classes in images: a TorchScript file, by path. Nothing is downloaded."""

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..images.files import sha256_of_file

# how far from 1 the probabilities of an image may sum, in fp16
ROUNDING = 1e-2


class DetectorError(ValueError):
    """What is wrong with a detector, in one sentence."""


class Detector(Protocol):
    """Sees what metrics are computed of. Images are `uint8 [N, C, R, R]` of any size; to resize them is the detector's own part.

    sha256: Tells it from every other one.
    """

    name: str
    sha256: str

    def features(self, images: Tensor) -> Tensor:
        """`[N, d]`, float32."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Of the classes it knows, `[N, classes]`, float32."""


class TorchScriptDetector:
    """A TorchScript file, called as NVIDIA's metrics call `inception-2015-12-05.pt` and `vgg16.pt`.

        features = forward(images, return_features=True),  probabilities = forward(images, no_output_bias=True)

    Images are `uint8 [N, 3, R, R]`, grey ones with three equal channels. A keyword that the file's forward does not have is left out.

    Args:
        sha256: What the file's checksum must be; None takes any.

    Raises:
        DetectorError: There is no such file, it is another one, or no TorchScript.
    """

    def __init__(self, path: str | os.PathLike, device: torch.device, sha256: str | None = None):
        self.path = Path(path)
        self.name = self.path.name
        try:
            self.sha256 = sha256_of_file(self.path)
        except OSError as error:
            raise DetectorError(f"{self.path} cannot be read ({error.strerror}): expected a TorchScript file such as NVIDIA's "
                                f"inception-2015-12-05.pt; nothing is downloaded, so fetch it first") from None
        if sha256 is not None and sha256.lower() != self.sha256:
            raise DetectorError(f"{self.path} has the SHA-256 {self.sha256}, expected {sha256}; it is another file, or its download was cut short")
        try:
            self._module = torch.jit.load(self.path, map_location=device).eval()
            self._keywords = {argument.name for argument in self._module.forward.schema.arguments}
        except (RuntimeError, AttributeError) as error:
            raise DetectorError(f"{self.path} is no TorchScript file ({last_line(error)}): expected what torch.jit.save wrote") from None

    def features(self, images: Tensor) -> Tensor:
        """`[N, d]`, float32.

        Raises:
            DetectorError: The file fails on these images, or returns something else.
        """
        return self._call(images, "return_features")

    def probabilities(self, images: Tensor) -> Tensor:
        """`[N, classes]`, float32.

        Raises:
            DetectorError: As of `features`, or what it returns are no probabilities.
        """
        p = self._call(images, "no_output_bias")
        if bool((p < 0).any()) or not bool(((p.sum(dim=1) - 1).abs() < ROUNDING).all()):
            raise DetectorError(f"{self.path} returns no probabilities of classes: expected rows that sum to 1, as of NVIDIA's Inception; "
                                f"leave out the metrics that need them, such as is50k")
        return p

    def _call(self, images: Tensor, keyword: str) -> Tensor:
        keywords = {keyword: True} if keyword in self._keywords else {}
        try:
            output = self._module(images.expand(-1, 3, -1, -1), **keywords)
        # TorchScript's own errors are no RuntimeErrors
        except (RuntimeError, torch.jit.Error) as error:
            raise DetectorError(f"{self.path} fails on images {list(images.shape)} of type uint8: {last_line(error)}") from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images) or not output.is_floating_point():
            got = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DetectorError(f"{self.path} returns {got} for {len(images)} images: expected floating-point numbers [{len(images)}, d]")
        if not bool(output.isfinite().all()):
            raise DetectorError(f"{self.path} returns numbers that are infinite or NaN: expected finite ones; it may need images of another size")
        return output.float()


def last_line(error: Exception) -> str:
    """The last line that is not empty, which is where TorchScript says what happened."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
