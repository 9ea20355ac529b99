"""Two packages from two roots: fastdgl, the trainer, and kernels/fastdgl_kernels, which stands alone."""

from setuptools import find_packages, setup

EXPORT = ["onnx", "onnxscript", "onnxruntime"]

setup(
    name="fastdgl",
    version="0.1.0",
    description="Train StyleGAN2 and BigGAN, and compress them under a teacher discriminator's guidance (DGL)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["fastdgl", "fastdgl.*"]) + find_packages("kernels"),
    package_dir={"fastdgl_kernels": "kernels/fastdgl_kernels"},
    package_data={"fastdgl": ["assets/*", "py.typed"], "fastdgl_kernels": ["LICENSE", "py.typed", "certify/verdicts/*"]},
    install_requires=["torch", "numpy", "pyyaml", "pydantic>=2", "safetensors", "pillow>=10.1", "click", "tqdm", "psutil"],
    extras_require={
        "train": ["deepspeed", "tensorboard"],
        # to read BigGAN-PyTorch's I128.hdf5
        "hdf5": ["h5py"],
        # to write ONNX, and to compare what was written with PyTorch
        "export": EXPORT,
        # to fetch generators from the Hugging Face Hub
        "hub": ["huggingface_hub"],
        # torch for CUDA brings triton along; the tests interpret the kernels without a GPU
        "test": ["pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "h5py", *EXPORT, "triton>=3.6; platform_system == 'Linux'"],
    },
    entry_points={"console_scripts": ["fastdgl = fastdgl.cli:main"]},
)
