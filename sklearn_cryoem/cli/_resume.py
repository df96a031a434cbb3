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
        estimator : MAPAligner or SMLClusterer
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
        from sklearn_cryoem.estimators import load_model, save_model
        from sklearn_cryoem.estimators._checkpoint import checkpoint_of

        if estimator.random_state is None:
            return estimator.fit(stack)
        estimator.set_params(checkpoint=self.path)
        state = checkpoint_of(estimator, stack).path
        done = state.with_suffix(".done.npz")
        if done.exists():
            return load_model(done)
        estimator.fit(stack)
        if state.exists():
            raise Interrupted("interrupted. The same command goes on from here.")
        estimator.set_params(checkpoint=None)
        save_model(estimator, done)
        return estimator
