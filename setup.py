"""Installs `fusion_nb`; everything it says is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
LICENCES = {"apache2": "Apache-2.0"}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license=LICENCES[cfg["license"]],
    packages=find_packages(include=["fusion_nb", "fusion_nb.*"]) + ["fusion_nb.studies"],
    package_dir={"fusion_nb": "fusion_nb", "fusion_nb.studies": "nbs/studies"},
    package_data={"fusion_nb.studies": ["*.ipynb", "params/*.yaml", "published/*.yaml", "results/*.csv"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    python_requires=">=" + cfg["min_python"],
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["fusion_nb=fusion_nb._modidx:d"]},
    zip_safe=False,
)
