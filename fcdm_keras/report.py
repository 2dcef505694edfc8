"""One page about finished or running runs, with the paper's results beside them.

    python -m fcdm_keras.report runs/digits runs/seed7/digits --output report.html

Writes a self-contained HTML page (pictures inside) and, beside it, its tables as Markdown. Scores are those of
scores.json and of every JSON file that `python -m fcdm_keras.evaluate RUN … --json RUN/NAME.json` left in the folder.
"""

from pathlib import Path

from fcdm_keras.arguments import word
from fcdm_keras.options import add_overwrite_flag, command_parser, reported
from fcdm_keras.runs.outputs import check_file

TITLE = "FCDM: runs and the paper's results"  # of every page and its tables


def parse(arguments=None):
    parser = command_parser("fcdm_keras.report", __doc__)
    parser.add_argument("runs", type=word, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--output", type=word, default="report.html", help="page to write (default report.html)")
    add_overwrite_flag(parser)
    options = parser.parse_args(arguments)
    if not options.output.endswith(".html"):
        parser.error(f"--output must end in .html. Received: {options.output!r}")
    try:
        for path in (Path(options.output), Path(options.output).with_suffix(".md")):
            check_file(path, TITLE.encode(), overwrite=options.overwrite)
    except ValueError as error:
        parser.error(str(error))
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
