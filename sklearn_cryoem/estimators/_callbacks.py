"""Callbacks of scikit-learn 1.9 and later, such as its progress bar; nothing at all before."""

try:
    from sklearn.callback import CallbackSupportMixin as TakesCallbacks
    from sklearn.callback import with_callbacks as with_callbacks

    FRAMES = 1  # that `with_callbacks` puts between a method and its caller
except ImportError:
    FRAMES = 0

    class TakesCallbacks:
        """What an older scikit-learn offers: no callbacks."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


class FitTask:
    """The task of a fit, as scikit-learn's callbacks see it: one subtask for every step.

    Parameters
    ----------
    estimator : estimator
        The one that is fitted, by a method decorated with `with_callbacks`.
    n_steps : int
        Most steps that there can be.
    name : str
        Of a step.
    X : ParticleStack or ndarray
        What is fitted.
    """

    def __init__(self, estimator, n_steps, name, X):
        self._estimator, self._name, self._context = estimator, name, None
        if getattr(estimator, "_skl_callbacks", None):
            self._context = estimator._init_callback_context(max_subtasks=n_steps)
            self._context.call_on_fit_task_begin(estimator=estimator, X=X)

    def step(self, n=1):
        """Tell of `n` steps that are done."""
        for _ in range(n if self._context is not None else 0):
            subtask = self._context.subcontext(task_name=self._name)
            subtask.call_on_fit_task_begin(estimator=self._estimator)
            subtask.call_on_fit_task_end(estimator=self._estimator)

    def end(self):
        """Tell of the end."""
        if self._context is not None:
            self._context.call_on_fit_task_end(estimator=self._estimator)
