"""Generators as folders of the Hugging Face Hub: `save_pretrained`, `from_pretrained`. Nothing is uploaded from here."""

import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_files import atomically
from ..sentences import printable

# safetensors is imported where files are: what only builds networks, such as the benchmarks, goes without

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# what config.json says besides the arguments of the network
FAMILY, CLASSES, LABEL_KIND = "family", "classes", "label_kind"
# what any argument of a network may be
LARGEST = 2**31 - 1
LOW_PRECISIONS = ("float16", "bfloat16")


class PretrainedError(ValueError):
    """A folder that is missing, damaged, or of another network, in one sentence."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def build(network: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network of these arguments; `low_precision` is spelled as in a config, e.g. "bfloat16".

    Raises:
        TypeError, ValueError: There is no network of these.
        RuntimeError: It needs more memory than there is.
    """
    arguments = dict(arguments)
    if "low_precision" in arguments:
        name = arguments["low_precision"]
        if name not in LOW_PRECISIONS:
            raise ValueError(f"low_precision: {name!r} is none of {', '.join(LOW_PRECISIONS)}")
        arguments["low_precision"] = getattr(torch, name)
    check_types(network, arguments)
    return network(**arguments)


def check_types(network: type[nn.Module], arguments: Mapping[str, Any]) -> None:
    """Refuse what a file gives in place of a number, before it is met in the middle of a network.

    Raises:
        TypeError: An argument is not of the type that the network's signature says.
        ValueError: It is a number beyond all networks.
    """
    parameters = inspect.signature(network.__init__).parameters
    for name, value in arguments.items():
        kinds = parameters[name].annotation if name in parameters else object
        if kinds in (float, float | None) and type(value) is int:
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise TypeError(f"{name}: expected {getattr(kinds, '__name__', kinds)}, got {value!r:.50}")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
            raise ValueError(f"{name}: {value:.5g} is no number of a network")


class Pretrained(nn.Module):
    """A generator that is saved to, and loaded from, a folder as huggingface_hub's PyTorchModelHubMixin lays it out.

    `config.json` holds the arguments of the network, its family and the names of its classes; `model.safetensors` its
    state dict; `README.md` is the model card.
    """

    family: str
    # whether labels may be vectors, or are classes always
    vector_labels: bool
    # "classes" or "vectors", of the training set; None where nobody said
    label_kind: str | None = None

    def __new__(cls, **arguments: Any) -> "Pretrained":
        network = super().__new__(cls)
        network.init_kwargs = arguments
        return network

    def save_pretrained(self, folder: str | Path, class_names: Sequence[str] | None = None) -> None:
        """Write the folder, which appears whole or not at all; tensors are fp32.

        Args:
            folder: Not there yet, or empty.
            class_names: Of class 0, 1, ..., if they have names.

        Raises:
            OSError: It cannot be written, or there is something in it.
        """
        import safetensors.torch

        folder = Path(folder).absolute()
        # all of them: a default of today is another one some day
        arguments = inspect.signature(type(self).__init__).bind(self, **self.init_kwargs)
        arguments.apply_defaults()
        config = {FAMILY: self.family, CLASSES: class_names and list(class_names), LABEL_KIND: self.label_kind, **arguments.kwargs}
        with atomically(folder) as unfinished:
            unfinished.mkdir()
            (unfinished / CONFIG).write_text(json.dumps(config, indent=2, default=_dtype_name) + "\n", encoding="utf-8")
            state = {key: value.detach().float().cpu().contiguous() for key, value in self.state_dict().items()}
            try:
                # the Hub and its readers ask which framework the tensors are of
                safetensors.torch.save_file(state, unfinished / WEIGHTS, metadata={"format": "pt"})
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from None
            (unfinished / CARD).write_text(model_card(self, class_names), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Pretrained":
        """The generator in a folder, or in a repository `user/name` of the Hugging Face Hub, in eval mode on the CPU.

        Args:
            source: A folder is read as it lies; for a repository huggingface_hub is needed, which keeps what it fetched.

        Raises:
            PretrainedError: There is no such folder, huggingface_hub is not installed, or the folder is damaged or
                holds another network.
        """
        folder = Path(source) if os.path.isdir(source) else fetched(str(source))
        family, arguments, _, label_kind = read_config(folder)
        if family != cls.family:
            raise PretrainedError(f"{folder}: holds a generator of family {family!r}, expected {cls.family!r}")
        try:
            network = build(cls, arguments)
            network.load_state_dict(read_state(folder))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise PretrainedError(f"{folder}: {WEIGHTS} and {CONFIG} are not of one network that this fastdgl knows: "
                                  f"{' '.join(str(error).split())[:200]}") from None
        network.label_kind = label_kind
        return network.eval()


def is_pretrained(folder: Path) -> bool:
    """Whether `save_pretrained` wrote the folder, to go by the names in it."""
    return os.path.isfile(folder / CONFIG) and os.path.isfile(folder / WEIGHTS)


def read_config(folder: Path) -> tuple[str, dict[str, Any], list[str] | None, str | None]:
    """The family, the arguments of the network, the names of the classes, if they have names, and the kind of its labels.

    Raises:
        PretrainedError: It is not there, or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        # folders of before say no kind
        return config.pop(FAMILY), config, config.pop(CLASSES), config.pop(LABEL_KIND, None)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise PretrainedError(f"{folder}: has no {CONFIG} of fastdgl, or a damaged one; expected a folder that save_pretrained wrote") from None


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of the network.

    Raises:
        PretrainedError: They are not there, or damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    # LookupError, ValueError: a dtype that this PyTorch or safetensors does not know
    except (OSError, safetensors.SafetensorError, LookupError, ValueError) as error:
        raise PretrainedError(f"{folder / WEIGHTS}: cannot be read: {error}") from None


def fetched(repository: str) -> Path:
    """Where a repository of the Hub lies on this machine once it is fetched.

    Raises:
        PretrainedError: It is no name of a repository, huggingface_hub is not installed, or it cannot be fetched.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise PretrainedError(f"{repository}: no such folder, and no repository of the Hugging Face Hub, whose names are user/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise PretrainedError(f"{repository}: no such folder, and to fetch it from the Hugging Face Hub huggingface_hub is needed, "
                              'which is not installed: pip install -c constraints.txt -e ".[hub]"') from None
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    # all that huggingface_hub raises: of the network, of names, of what is not there
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{repository}: cannot be fetched from the Hugging Face Hub: {' '.join(str(error).split())[:200]}") from None


def model_card(G: Pretrained, class_names: Sequence[str] | None) -> str:
    """The text of README.md: what the network is, and how to load it. The licence is left to who publishes it."""
    R, channels = G.img_resolution, "RGB" if G.img_channels == 3 else f"{G.img_channels} channels"
    classes = "none" if not G.c_dim else f"{G.c_dim}: {', '.join(class_names)}" if class_names else str(G.c_dim)
    call = "G(z, torch.eye(G.c_dim)[[0, 0, 0, 0]])" if G.c_dim else "G(z)"
    arguments = "".join(f"| `{name}` | {value} |\n" for name, value in G.init_kwargs.items())
    return f"""---
license: unknown
library_name: fastdgl
pipeline_tag: unconditional-image-generation
tags: [gan, image-generation, {G.family}]
---

# {G.family} generator, {R}x{R}

| | |
| --- | --- |
| images | {R}x{R}, {channels}, values about [-1, 1] |
| classes | {classes} |
| parameters | {sum(p.numel() for p in G.parameters()):,} |
| z | {G.z_dim} standard normal numbers |
{arguments}
## Load it

```python
import torch
from fastdgl.models.{G.family} import Generator

G = Generator.from_pretrained("user/name")     # or the path of this folder
z = torch.randn(4, G.z_dim)
images = {call}     # [4, {G.img_channels}, {R}, {R}]
```

## Licence

To be chosen by who publishes these weights: name it here and in the first lines of this file.
"""


def _dtype_name(value: torch.dtype) -> str:
    return str(value).removeprefix("torch.")
