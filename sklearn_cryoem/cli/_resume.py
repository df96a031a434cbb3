"""A run that was killed goes on: what its fits reached lies in the folder of the run until it is done.

`RunFolder` removes that with its last file.
"""

from sklearn_cryoem.cli.console import Interrupted

UNFINISHED = "unfinished"


class UnfinishedRun:
    """Where the fits of one run keep their states, and those that are done their results.

    Parameters
    ----------
    folder : RunFolder
        The folder of the run.
    """

    def __init__(self, folder):
        self.path = folder / UNFINISHED

    def fit(self, estimator, stack):
        """Fit, or go on from where the same call was killed; with a seed, for nothing else is the same call.

        Parameters
        ----------
        estimator : MAPAligner, SMLClusterer or DeepClusterer
            With its parameters.
        stack : ParticleStack
            The particles.

        Returns
        -------
        estimator : estimator
            Fitted; the one given, or one that a run before had done.

        Raises
        ------
        Interrupted
            If Ctrl-C ended the fit; what it has reached is kept.
        """
        from sklearn_cryoem.estimators._checkpoint import fit_once

        if estimator.random_state is None:
            return estimator.fit(stack)
        try:
            return fit_once(estimator, stack, self.path)[0]
        except KeyboardInterrupt:
            if not self.path.is_dir() or not any(self.path.iterdir()):
                raise
            raise Interrupted("interrupted. The same command goes on from here.") from None
