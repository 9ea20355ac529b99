"""Images as files in a folder or zip: NVIDIA's format with its `dataset.json`, or a folder for each class."""

import hashlib
from pathlib import Path

from PIL import Image

from .decoding import open_image
from .errors import DatasetError
from .files import Archive, Folder, is_hidden, is_image
from .labels import Labels, labels_file, labels_of_files


class ImageFiles:
    """The images anywhere below a folder or in a zip, in the order of their sorted names.

    others: Names of the files that are no images, hidden ones left out.
    """

    def __init__(self, files: Folder | Archive):
        self.files = files
        visible = [name for name in files.names if not is_hidden(name)]
        self.image_names = [name for name in visible if is_image(name)]
        self.others = [name for name in visible if not is_image(name) and name != labels_file(files)]

    @property
    def path(self) -> Path:
        return self.files.path

    def __len__(self) -> int:
        return len(self.image_names)

    def name(self, i: int) -> str:
        return self.image_names[i]

    def image(self, i: int) -> Image.Image:
        return open_image(self.files.read(self.image_names[i]))

    def fingerprint(self) -> str:
        """By names, lengths and CRC-32: a folder and its zip have the same."""
        checksum = hashlib.sha256()
        for name in self.image_names:
            try:
                size, crc = self.files.checksum(name)
            except DatasetError as error:
                raise DatasetError(f"{name} in {self.path} {error}") from error
            # names on a disk need not be UTF-8
            checksum.update(f"{name} {size} {crc}\n".encode(errors="surrogateescape"))
        return checksum.hexdigest()

    def labels(self) -> Labels:
        return labels_of_files(self.files, self.image_names)
