"""What an attacker paints with: generators of images, and the realism they demand; one file each."""

from calor_hf.generators._base import GENERATORS, Generator, load_generator

__all__ = ["GENERATORS", "Generator", "load_generator"]
