"""The command `sklearn-cryoem`.

`main` lists the commands. Each has a function `add_...` that adds its parser and a function that runs it with
the parsed options and a `Console`. Packages of the library, as in ``lib.io.read_particles``, are imported
when they are first used, so that `--help` answers at once.
"""
