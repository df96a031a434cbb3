"""Files: reading and writing particles, maps and stacks. Strict by default, permissive on request."""

from sklearn_cryoem.io.mrc import read_mrc, write_mrc
from sklearn_cryoem.io.read import read_particles
from sklearn_cryoem.io.write import write_particles

__all__ = ["read_mrc", "read_particles", "write_mrc", "write_particles"]
