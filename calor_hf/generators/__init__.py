"""Generators of images, which attacks search; one file each."""

from calor_hf.generators._stylegan2_import import import_stylegan2
from calor_hf.generators.base import GENERATORS, RENDERER, Generator, load_generator

__all__ = ["GENERATORS", "RENDERER", "Generator", "import_stylegan2", "load_generator"]
