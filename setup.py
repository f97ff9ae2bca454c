from setuptools import setup

setup()  # metadata is in pyproject.toml
