"""The package as colcon and pip build it; the description for ROS is package.xml."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
NAME = "recon4d_ros"
MANIFEST = ElementTree.parse(ROOT / "package.xml")


def files(*patterns: str) -> list[str]:
    """Paths relative to this file, as setuptools wants them."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


setup(
    name=NAME,
    version=MANIFEST.findtext("version"),
    description=MANIFEST.findtext("description"),
    license=MANIFEST.findtext("license"),
    maintainer=MANIFEST.findtext("maintainer"),
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", files("launch/*.launch.py")),
        (f"share/{NAME}/config", files("config/*.yaml", "config/*.rviz", "config/*.xml")),
        (f"share/{NAME}/config/train", files("config/train/*.yaml")),
        (f"share/{NAME}/models", files("models/*.yaml", "models/*.md", "models/*.safetensors")),
    ],
    # What the code imports is in package.xml (rosdep) and requirements/ (pip): the same library
    # has different names there, and a list here would make entry points refuse the other's.
    install_requires=["setuptools"],
    extras_require={"test": ["pytest", "pytest-timeout", "hypothesis"]},
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "recon4d = recon4d_ros.cli.main:main",
            "recon4d_node = recon4d_ros.ros.node:main",
        ]
    },
)
