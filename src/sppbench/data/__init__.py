"""Image data sets as Lightning data modules, served from tensors on the device that trains."""

from sppbench.errors import DataError
from sppbench.extras import need

try:
    from sppbench.data.augmentation import CropFlip
    from sppbench.data.cifar100 import CIFAR100
    from sppbench.data.datamodule import ImageDataModule, Images
    from sppbench.data.digits import Digits
    from sppbench.data.loader import TensorLoader
    from sppbench.data.synthetic import Synthetic
except ModuleNotFoundError:
    need("sppbench.data", "benchmark")
    raise

__all__ = ["CIFAR100", "CropFlip", "DataError", "Digits", "ImageDataModule", "Images", "Synthetic", "TensorLoader"]
