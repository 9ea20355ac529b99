"""What sees features and classes in images: a TorchScript file, by path or by the name that the field knows it by."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..download import DownloadError, cache_folder, download
from ..engines import first_rank_decides
from ..images.files import sha256_of_file

# how far from 1 the probabilities of an image may sum, in fp16
ROUNDING = 1e-2


class DetectorError(ValueError):
    """What is wrong with a detector, in one sentence."""


@dataclass(frozen=True)
class Published:
    """A detector that lies where anybody can fetch it."""

    url: str
    sha256: str

    def path(self, cache: Path) -> Path:
        """Where it is kept."""
        return cache / self.url.rpartition("/")[2]


# NVIDIA gives no checksums. These are what k-diffusion (k_diffusion/evaluation.py) and DiscoScene
# (models/perceptual_model.py) expect of the same addresses.
PUBLISHED = {
    "inception": Published("https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
                           "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
    "vgg16": Published("https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt",
                       "b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3"),
}
# those that come with this package
SHIPPED = {"digits": Path(__file__).parents[1] / "assets" / "digits_classifier.pt"}
NAMES = (*PUBLISHED, *SHIPPED)


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

    def lpips(self, images: Tensor) -> Tensor:
        """`[N, d]`, float32, whose squared distances are LPIPS, of `float32 [N, C, R, R]` in 0 to 255 that are not resized."""


class TorchScriptDetector:
    """A TorchScript file, called as NVIDIA's metrics call `inception-2015-12-05.pt` and `vgg16.pt`.

        features = forward(images, return_features=True),  probabilities = forward(images, no_output_bias=True)
        lpips = forward(images, return_lpips=True, resize_images=False)

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
            raise DetectorError(f"{self.path} cannot be read ({error.strerror}): expected a TorchScript file, "
                                f"or a detector by its name, {', '.join(NAMES)}") from None
        if sha256 is not None and sha256.lower() != self.sha256:
            raise DetectorError(f"{self.path} has the SHA-256 {self.sha256}, expected {sha256}; it is another file, or its download was cut short: "
                                "remove it, and fetch it again")
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
        return self._call(images, return_features=True)

    def probabilities(self, images: Tensor) -> Tensor:
        """`[N, classes]`, float32.

        Raises:
            DetectorError: As of `features`, or what it returns are no probabilities.
        """
        p = self._call(images, no_output_bias=True)
        if bool((p < 0).any()) or not bool(((p.sum(dim=1) - 1).abs() < ROUNDING).all()):
            raise DetectorError(f"{self.path} returns no probabilities of classes: expected rows that sum to 1, as of NVIDIA's Inception; "
                                f"leave out the metrics that need them, such as is50k")
        return p

    def lpips(self, images: Tensor) -> Tensor:
        """`[N, d]`, float32, of images `float32 [N, C, R, R]` in 0 to 255.

        Raises:
            DetectorError: As of `features`, or its forward has no `return_lpips`.
        """
        if "return_lpips" not in self._keywords:
            raise DetectorError(f"{self.path} cannot tell perceptual distances: expected a forward with return_lpips, as of NVIDIA's vgg16.pt; "
                                f"take vgg16 for it, or leave out ppl2_wend")
        return self._call(images, return_lpips=True, resize_images=False)

    def _call(self, images: Tensor, **keywords: bool) -> Tensor:
        keywords = {keyword: value for keyword, value in keywords.items() if keyword in self._keywords}
        try:
            output = self._module(images.expand(-1, 3, -1, -1), **keywords)
        # TorchScript's own errors are no RuntimeErrors
        except (RuntimeError, torch.jit.Error) as error:
            dtype = str(images.dtype).removeprefix("torch.")
            raise DetectorError(f"{self.path} fails on images {list(images.shape)} of type {dtype}: {last_line(error)}") from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images) or not output.is_floating_point():
            got = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise DetectorError(f"{self.path} returns {got} for {len(images)} images: expected floating-point numbers [{len(images)}, d]")
        if not bool(output.isfinite().all()):
            raise DetectorError(f"{self.path} returns numbers that are infinite or NaN: expected finite ones; it may need images of another size")
        return output.float()


def open_detector(name_or_path: str | os.PathLike, device: torch.device, sha256: str | None = None,
                  cache: Path | None = None) -> TorchScriptDetector:
    """A detector by its name, one of NAMES, or of a TorchScript file. All ranks call it together.

    A published one is downloaded by rank 0 where `cache` does not hold it yet.

    Args:
        sha256: What the file's checksum must be. Default: the one known of a published detector; any other file is taken.
        cache: A folder that all ranks see. Default: `cache_folder()`.

    Raises:
        DetectorError: As of TorchScriptDetector, or it cannot be downloaded.
    """
    if name_or_path not in PUBLISHED:
        return TorchScriptDetector(SHIPPED.get(name_or_path, name_or_path), device, sha256)
    published = PUBLISHED[name_or_path]
    path = published.path(cache or cache_folder())
    try:
        first_rank_decides(lambda: None if path.exists() else download(published.url, path, published.sha256))
    except DownloadError as error:
        raise DetectorError(str(error)) from None
    return TorchScriptDetector(path, device, sha256 or published.sha256)


def last_line(error: Exception) -> str:
    """The last line that is not empty, which is where TorchScript says what happened."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
