"""Build metadata, read from settings.ini (the single source)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = here / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["densegen", "densegen.*"]),
    package_data={"densegen": ["assets/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": [word for part in ("dev", "score", "homework") for word in cfg[f"{part}_requirements"].split()],
        "score": cfg["score_requirements"].split(),
        "homework": cfg["homework_requirements"].split(),
        "logs": cfg["logs_requirements"].split(),
        "peers": cfg["peer_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
