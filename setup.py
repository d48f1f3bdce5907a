"""Packaging of seamless_d2. Tool settings are in pyproject.toml; `make install` sets a whole environment up."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What `make docs` builds with.
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

# Prediction on clusters.
RAY = ["ray[data]>=2.40", "pyarrow>=14.0", "fsspec>=2024.2"]

# Exported models: both engines, so that every file is verified by all that will read it.
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "openvino>=2025.0"]

# Reading and writing of videos. Before 17, colors are converted with another matrix than the video's.
VIDEO = ["av>=17"]


class BuildWithoutOwnTools(build_py):
    """Leaves out the tools that are of use in the repository alone."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if package != "seamless_d2.tools" or m[1] not in ("benchmark", "setup_env")]


def read_version() -> str:
    """The version in seamless_d2/__init__.py, read without importing the package (which needs Detectron2)."""
    source = (ROOT / "seamless_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"^__version__\s*=\s*[\"']([^\"']+)[\"']", source, re.MULTILINE)
    if match is None:
        raise RuntimeError("seamless_d2/__init__.py has no line __version__ = '…'")
    return match.group(1)


def read_readme() -> str:
    """README.md, or nothing where a source tree comes without it."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="seamless_d2",
    version=read_version(),
    description="Seamless Scene Segmentation (CVPR 2019) as a Detectron2 extension: panoptic segmentation",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ and tools/ stay at the top level of the repository; they are installed as the package data of
    # seamless_d2.configs and as seamless_d2.tools, whose scripts the command "seamless" runs.
    packages=[*find_packages(include=["seamless_d2", "seamless_d2.*"]), "seamless_d2.configs", "seamless_d2.tools"],
    package_dir={"seamless_d2.configs": "configs", "seamless_d2.tools": "tools"},
    cmdclass={"build_py": BuildWithoutOwnTools},
    entry_points={"console_scripts": ["seamless=seamless_d2.cli:main"]},
    package_data={"seamless_d2.configs": ["**/*.yaml"], "seamless_d2.demo_page": ["*.js"]},
    # detectron2 and panopticapi are missing here on purpose: no package index has them under these names.
    # tools/setup_env.py installs both without their dependencies, so the list below covers those too.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "opencv-python>=4.8",
        "pillow>=10.1",
        "pycocotools>=2.0.7",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "cloudpickle>=2.0",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "tabulate>=0.9",
        "termcolor>=1.1",
        "tqdm>=4.60",
        "portalocker>=2.3",
        "matplotlib>=3.7",
        "tensorboard>=2.12",
        "packaging>=21.0",
        "msgspec>=0.18",
    ],
    extras_require={
        # cityscapesscripts only to compare with: the preparation of Cityscapes needs no package of its own
        # gradio, playwright: the demo page is tested in a browser where one is installed
        # ray, s3fs, moto: jobs on a cluster are tested against an object store on this machine
        # timm: Detectron2's plain ViT and Swin import it
        "dev": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "import-linter>=2.3",
            "timm>=1.0",
            "build>=1.0",
            "setuptools>=70.1",
            "cityscapesscripts>=2.2",
            "nbconvert>=7.0",
            "ipykernel>=6.0",
            "gradio>=6.0",
            "playwright>=1.40",
            *VIDEO,
            "supervision>=0.25",
            *EXPORT,
            *RAY,
            "s3fs>=2024.2",
            "moto[server]>=5.0",
            *DOCS,
        ],
        "docs": DOCS,
        "export": EXPORT,
        "onnxruntime": ["onnxruntime>=1.20"],
        "openvino": ["openvino>=2025.0"],
        "page": ["gradio>=6.0"],
        "fast": ["hotcoco>=1.3"],
        "ray": RAY,
        "s3": ["s3fs>=2024.2"],
        "gs": ["gcsfs>=2024.2"],
        "azure": ["adlfs>=2024.2"],
        "timm": ["timm>=1.0"],
        "video": VIDEO,
        "wandb": ["wandb>=0.16"],
    },
    zip_safe=False,
)
