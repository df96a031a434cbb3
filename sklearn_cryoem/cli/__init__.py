"""The command `sklearn-cryoem`.

`main` lists the commands. Each has a function `add_...` that adds its parser and a function that runs it with
the parsed options and a `Console`. Heavy imports wait until a command runs, so that `--help` answers at once.
"""
