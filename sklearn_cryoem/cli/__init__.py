"""The command `sklearn-cryoem`: thin, one module for each sub-command.

Each command module offers `add_parser(commands)` and `run(options, console)`; `main` lists them. Heavy
imports wait until a command runs, so that `--help` answers at once.
"""
