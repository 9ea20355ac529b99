"""Images with their labels: as a dataset, and as an endless stream of batches in [-1, 1].

They are read where they lie, one at a time: from a folder or zip of images (`image_files.py`), from CIFAR-10's binary files
(`cifar10.py`), or from BigGAN-PyTorch's HDF5 (`hdf5.py`). Making a dataset of other images is `packing.py`.
"""

from .dataset import ImageDataset as ImageDataset
from .decoding import (
    decode as decode, formats as formats, is_power_of_two as is_power_of_two, open_image as open_image, stored_bits as stored_bits, suffixes as suffixes,
    upright as upright, why_no_image as why_no_image,
)
from .errors import DatasetError as DatasetError, LabelsMissing as LabelsMissing, cause as cause
from .files import composed as composed
from .labels import CLASSES as CLASSES, VECTORS as VECTORS
from .sources import Source as Source, dataset_path as dataset_path, open_source as open_source
from .stream import batches as batches, stream as stream
