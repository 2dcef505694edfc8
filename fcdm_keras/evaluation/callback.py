"""Scores while training: a few images drawn from the EMA weights every N steps."""

from fcdm_keras import distribution, signals
from fcdm_keras.sampling.request import draw_together
from fcdm_keras.training.callbacks import Drawing


class Evaluate(Drawing):
    """Every `every` steps draws images from the EMA weights and hands their scores to writers.

    The weights that train are not touched. Images that are not finite get no scores, which is told. Put this callback
    behind `StepLog`, whose speed then leaves it out.

    Args:
        task: a task over the trainer's backbone, e.g. `ClassToImage`.
        judge: `judge(images, labels)` → dict of floats, such as `score_digits` or a `suite.Judge`.
        labels: labels, or whatever the images' conditions are, an array `(N, …)`.
        every: steps between scores; 0 is never.
        writers: callables that take a dict of `step` and the scores.
        scored: steps whose scores are there already.
        **options: passed to `task.draw`.
    """

    result = "score"

    def __init__(self, task, judge, labels, every, writers, scored=(), **options):
        super().__init__(every)
        self.task = task
        self.judge = judge
        self.labels = labels
        self.writers = writers
        self.scored = scored
        self.options = options

    def draw(self):
        with signals.interruptible():
            drawn = draw_together(self.task, self.labels, weights=self.model.ema.values(), **self.options)
            scores = self.judge(drawn, self.labels) if distribution.is_main() else None
        if scores is not None:
            for writer in self.writers:
                writer({"step": self.step, **scores})

    def drawn(self):
        return self.step in self.scored
