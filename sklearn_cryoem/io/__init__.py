"""Files: reading and writing particles, maps and stacks. Strict by default, permissive on request."""

from sklearn_cryoem.io.classes import Selection, read_selection, write_class_averages, write_selection
from sklearn_cryoem.io.coordinates import duplicates, recentred
from sklearn_cryoem.io.image_files import rename_images
from sklearn_cryoem.io.read import read_mrc, read_particles
from sklearn_cryoem.io.write import write_mrc, write_particles

__all__ = [
    "Selection",
    "duplicates",
    "read_mrc",
    "read_particles",
    "read_selection",
    "recentred",
    "rename_images",
    "write_class_averages",
    "write_mrc",
    "write_particles",
    "write_selection",
]
