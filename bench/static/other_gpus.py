"""What runs on each GPU, in sentences; the parts that depend on limits are asked of the code that decides."""

from fastdgl_kernels._tuning import LIMITS
from fastdgl_kernels.convolution.kernel import LEAST_CAPABILITY, why_not_device

from .roofline import DEVICES

ROCM = (
    "gfx942 and gfx90a (ROCm): operators run as plain PyTorch. One kernel of each kind compiles for them without "
    "spills; `_dispatch.OPENED` is the one place at which a certification lets them run. Convolutions stay PyTorch's."
)


def sentences() -> list[str]:
    """Return one for each GPU on which less than every kernel runs."""
    found = []
    for arch, device in LIMITS.items():
        name = f"sm_{arch} ({DEVICES[arch].name}, {device.shared // 1024} KB of shared memory)"
        if arch < LEAST_CAPABILITY:
            found.append(f"{name}: every kernel but the convolutions: {why_not_device(device)}. PyTorch convolves there.")
        else:
            found.append(f"{name}: every kernel.")
    return [*found, ROCM]
