"""One page about finished or running runs, with the paper's results beside them.

    python -m fcdm_keras.report runs/digits runs/seed7/digits --output report.html

Writes a self-contained HTML page (pictures inside) and, beside it, its tables as Markdown. Scores are those of
scores.json and of every JSON file that `python -m fcdm_keras.evaluate RUN … --json RUN/NAME.json` left in the folder.
"""

from pathlib import Path

from fcdm_keras.arguments import word
from fcdm_keras.options import command_parser, reported


def parse(arguments=None):
    parser = command_parser("fcdm_keras.report", __doc__)
    parser.add_argument("runs", type=word, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--output", type=word, default="report.html", help="page to write (default report.html)")
    options = parser.parse_args(arguments)
    if not options.output.endswith(".html"):
        parser.error(f"--output must end in .html. Received: {options.output!r}")
    return options


def main(arguments=None):
    options = parse(arguments)
    with reported():
        from fcdm_keras.reporting import page

        folders = list(dict.fromkeys(options.runs))
        paths = page.write(folders, Path(options.output))
    count = f"{len(folders)} run{'s' * (len(folders) > 1)}"
    print(f"{paths[0]} and {paths[1]}: {count} beside the paper's results.")


if __name__ == "__main__":
    main()
