"""Scores while training: a few images drawn from the EMA weights every N steps."""

from fcdm_keras import distribution
from fcdm_keras.sampling.request import draw_together
from fcdm_keras.training.callbacks import StepCallback


class Evaluate(StepCallback):
    """Every `every` steps draws images from the EMA weights and hands their scores to writers.

    The weights that train are not touched. Images that are not finite get no scores, which is told. Put this callback
    behind `StepLog`, whose speed then leaves it out.

    Args:
        task: a task over the trainer's backbone, e.g. `ClassToImage`.
        judge: `judge(images, labels)` → dict of floats, such as `score_digits` or a `suite.Judge`.
        labels: labels, or whatever the images' conditions are, an array `(N, …)`.
        every: steps between scores; 0 is never.
        writers: callables that take a dict of `step` and the scores.
        **options: passed to `task.draw`.
    """

    def __init__(self, task, judge, labels, every, writers, **options):
        super().__init__()
        self.task = task
        self.judge = judge
        self.labels = labels
        self.every = every
        self.writers = writers
        self.options = options

    def on_step(self, logs):
        if self.due(self.every):
            try:
                drawn = draw_together(self.task, self.labels, weights=self.model.ema.values(), **self.options)
            except FloatingPointError as error:
                distribution.say(f"There are no scores of step {self.step}. {error}")
                return
            if distribution.is_main():
                row = {"step": self.step, **self.judge(drawn, self.labels)}
                for writer in self.writers:
                    writer(row)
