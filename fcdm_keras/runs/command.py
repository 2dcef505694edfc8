"""The frame of a training script: flags, the run folder, training, and the scores at the end.

Nothing heavy is imported, until the flags and the data are found good.
"""

import dataclasses
import sys
import time
from collections.abc import Callable

from fcdm_keras import options
from fcdm_keras.arguments import Parser
from fcdm_keras.files import write_atomically
from fcdm_keras.recipes import TrainConfig
from fcdm_keras.runs.folder import SCORES, folder_of, opened
from fcdm_keras.runs.shared import if_alone, if_one_of_several


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """A training script.

    Args:
        description: text of `--help`.
        recipes: name → `TrainConfig`, or a class derived from it.
        default: the recipe that is trained if none is named.
        dataset_of: the settings → their data set, see `fcdm_keras.runs.datasets`.
        hint: printed where the script is started without flags.
    """

    description: str
    recipes: dict[str, TrainConfig]
    default: str
    dataset_of: Callable
    hint: str

    def parse(self, arguments=None):
        """The resolved settings, and the devices. Ends the program for flags or data that make no run."""
        return self._parse(arguments)[:2]

    def _parse(self, arguments):
        """As `parse`, and the settings that flags gave."""
        parser = Parser(description=self.description, allow_abbrev=False)
        options.add_recipe_flags(parser, self.recipes, self.default)
        options.add_device_flags(parser, model_parallel=True)
        parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
        parsed = parser.parse_args(arguments)
        try:
            config = options.from_recipe(parsed, self.recipes)
            given = options.given(parsed, type(config))
            config = self.dataset_of(config).resolve(config, given, parsed.dry_run)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        if parsed.dry_run:
            with options.reported():
                print(options.to_json(config), end="")
            sys.exit()
        return config, options.device_options(parsed), given

    def main(self, arguments=None):
        """Trains to the last step, resuming what is in the run folder, and scores what the model draws."""
        began = time.perf_counter()
        config, devices, given = self._parse(arguments)
        folder, opening = folder_of(config), opened(config, given, self.dataset_of(config))
        with options.reported("Stopped. The same command resumes from the last checkpoint."), if_alone(opening):
            if len(sys.argv) == 1:
                print(self.hint)
            from fcdm_keras import distribution
            from fcdm_keras.runs.fit import fit_run
            from fcdm_keras.runs.loop import Finishing

            with distribution.setup(**devices), if_one_of_several(opening):
                scores, finishing = None, Finishing(folder)
                data, trainer, task = fit_run(config, folder, self.dataset_of(config), finishing)
                with finishing.step("the scores"):
                    scores = data.score(config, folder, trainer, task)
                if distribution.is_main() and scores is not None:
                    with finishing.step("the scored picture"):
                        data.write_scored(folder)
                    with finishing.step(SCORES):
                        self._conclude(config, folder, data, scores, time.perf_counter() - began)
                finishing.end()

    def _conclude(self, config, folder, data, scores, seconds):
        if scores:
            print(f"\n{data.describe(config, scores)}")
        scores["seconds"] = round(seconds, 1)
        write_atomically(folder / SCORES, options.to_json(scores))
        print(f"  {seconds:.0f} s in all; images, curves, scores and the model are in {folder}/")
