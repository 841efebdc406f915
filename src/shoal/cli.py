"""The command line: the library's functions under the same names, for people who start studies from a shell.

It parses, calls, prints and turns errors into exit codes: 0 done, 1 the study or its file failed, 2 wrong usage, 130
stopped by Ctrl-C, 143 by SIGTERM. Progress goes to standard error and results to standard output, so that both can be redirected.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, NoReturn

from shoal import _data_commands as data_files
from shoal import _export_command, _finder_commands
from shoal import _study_commands as study_files
from shoal._completion import SHELLS, completion_script
from shoal._text import format_number, format_param, format_params, format_value, json_ready
from shoal._user_file import UserFile, load_user_file
from shoal.errors import ShoalError, StudyError, UsageError, did_you_mean
from shoal.objectives import broken_in
from shoal.progress import stages_shown
from shoal.records import Json, StudyRecord, TrialRecord
from shoal.stages import enter

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_TERMINATED: Final = 143

# Destinations of command-line options that are keywords of shoal.tune under the same name.
_TUNE_KEYWORDS: Final = (
    "study_name",
    "n_trials",
    "max_epochs",
    "metric",
    "constraints",
    "metrics",
    "direction",
    "sampler",
    "scheduler",
    "storage",
    "seed",
    "device",
    "timeout_s",
    "trial_timeout_s",
    "max_total_epochs",
    "target_value",
    "patience_trials",
    "reproducible",
    "value",
    "folds",
    "seeds",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    parser = build_parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}.{_hint(parser, arguments, unknown)}")
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        _refuse_passwords(arguments)
        code: int = arguments.run(arguments)
        return code
    except ShoalError as error:
        print(f"shoal: error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:  # before the engine listens for it, or a second one after it does
        print("shoal: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`shoal best ... | head`)
        return EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; each command's function is in its ``run`` default."""
    parser = argparse.ArgumentParser(
        prog="shoal",
        description="Tune PyTorch hyperparameters by training many trials together.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print Shoal's version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    tune = _command(commands, "tune", "run a new study", run_tune)
    _add_file(tune)
    _add_budget(tune, resume=False)
    # Options that are not given are absent, so that they do not override the file's own.
    for flags, settings in (
        (
            ["--metric"],
            {
                "metavar": "M",
                "action": "append",
                "help": "metric to judge trials by, such as accuracy or loss; again for further objectives, such as n_parameters",
            },
        ),
        (
            ["--constraint"],
            {
                "metavar": "BOUND",
                "action": "append",
                "dest": "constraints",
                "help": "bound that the best must keep, such as 'latency_ms <= 2'; again for more",
            },
        ),
        (
            ["--metrics"],
            {
                "metavar": "M,M,...",
                "type": _names,
                "help": "further metrics to record, such as f1,auroc,recall_class_2; they decide nothing",
            },
        ),
        (
            ["--direction"],
            {
                "choices": ["minimize", "maximize"],
                "action": "append",
                "help": "minimize or maximize the metric; once for each",
            },
        ),
        (["--sampler"], {"metavar": "S", "help": "how to choose parameters, such as tpe or random"}),
        (
            ["--scheduler"],
            {
                "metavar": "S",
                "help": "which trials train on, such as asha, hyperband, top_k, freeze_thaw, pbt or none",
            },
        ),
        (
            ["--storage"],
            {
                "metavar": "URL_OR_PATH",
                "help": "study file (default: FILE's name with .db, in this folder) or database",
            },
        ),
        (["--study-name"], {"metavar": "NAME", "help": "the study's name, where a storage holds several"}),
        (["--seed"], {"metavar": "N", "type": int, "help": "seed of the whole study"}),
        (["--device"], {"metavar": "D", "help": "auto, cpu, cuda, cuda:1, ..."}),
        (
            ["--reproducible"],
            {"action": "store_true", "help": "pin everything that could change a result between runs"},
        ),
        (["--value"], {"choices": ["last", "best"], "help": "which epoch a trial is judged by"}),
        (["--folds"], {"metavar": "N", "type": _positive_int, "help": "cross-validate trials on so many folds"}),
        (["--seeds"], {"metavar": "N", "type": _positive_int, "help": "train each trial under so many seeds"}),
    ):
        tune.add_argument(*flags, default=argparse.SUPPRESS, **settings)
    data_files.add_options(tune)
    _add_output(tune)

    resume = _command(commands, "resume", "go on with a killed, interrupted or finished study", run_resume)
    _add_study(resume)
    _add_file(resume)
    _add_budget(resume, resume=True)
    data_files.add_options(resume)
    _add_output(resume)

    report = _command(commands, "report", "write a study's HTML report", run_report)
    _add_study(report)
    report.add_argument(
        "-o", "--output", metavar="PATH", help="HTML file to write (default: the study's name with .html)"
    )
    report.add_argument("--figures", metavar="DIR", help="also write each figure as PNG and SVG into this folder")
    _add_loudness(report)

    watch = _command(commands, "watch", "show a study's report in a browser while it runs", run_watch)
    _add_study(watch)
    watch.add_argument(
        "--port", metavar="N", type=_port, default=None, help="port on 127.0.0.1 (default: 8765; 0: any free one)"
    )
    watch.add_argument("--open", action="store_true", help="also open the page in the default browser")

    best = _command(commands, "best", "print a study's best trial", run_best)
    _add_study(best)
    best.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    explain = _command(commands, "explain", "say which trials can train together, and why others cannot", run_explain)
    _add_file(explain)
    explain.add_argument(
        "--n-trials", metavar="N", type=_positive_int, default=20, help="trials to look at (default: 20)"
    )
    explain.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the trials looked at (default: 0)")
    data_files.add_options(explain)

    predict = _command(
        commands, "predict", "predict with the model tuned from a data file or folder", data_files.run_predict
    )
    predict.add_argument("study", metavar="STUDY", help="study file, or the .model.safetensors file beside it")
    predict.add_argument(
        "file", metavar="FILE", help="CSV or Parquet file with the new rows; a file or folder of images or texts"
    )
    predict.add_argument(
        "-o", "--output", metavar="PATH", help="CSV file to write (default: FILE's name with .predictions.csv)"
    )
    study_files.add_commands(functools.partial(_command, commands))
    for name, (text, _, _) in _finder_commands.COMMANDS.items():
        finder = _command(commands, name, text, functools.partial(run_finder, name))
        finder.add_argument("file", metavar="FILE", help="Python file with define(trial) and data()")
        _finder_commands.add_options(finder, name)

    export = _command(commands, "export", "write a study's winner as plain PyTorch, without Shoal", run_export)
    _add_study(export)
    export.add_argument("file", metavar="FILE", help="Python file with the define(trial) and data() of the study")
    _export_command.add_options(export)

    completion = _command(
        commands, "completion", "print a script that completes commands and options in a shell", run_completion
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell it is for")
    return parser


def _hint(parser: argparse.ArgumentParser, arguments: argparse.Namespace, unknown: Sequence[str]) -> str:
    """``" Did you mean '--metric'?"`` for an option that is nearly one of the command's own."""
    flags: list[str] = []
    for action in parser._actions:
        for command in (action.choices or {}).values() if isinstance(action.choices, Mapping) else ():
            if command.get_default("run") is arguments.run:
                flags = [flag for a in command._actions for flag in a.option_strings if flag.startswith("--")]
    word = unknown[0].split("=", 1)[0]
    return did_you_mean(word, flags) if word.startswith("--") else ""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"shoal {_library().__version__}")
        parser.exit()


def _command(commands: Any, name: str, text: str, run: object) -> argparse.ArgumentParser:
    sentence = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=sentence, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="Python file with define(trial), data() and perhaps options = {...}, with ':NAME' after it if define has "
        "another name; or a study file (study.toml); or a CSV or Parquet file, with --target; or a folder of class-named "
        "folders of images or texts",
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="study file or storage URL")
    parser.add_argument("--study-name", metavar="NAME", default=None, help="which study of a storage with several")


def _add_budget(parser: argparse.ArgumentParser, *, resume: bool) -> None:
    more = " (in all, with those already run)" if resume else ""
    absent = argparse.SUPPRESS
    parser.add_argument("--n-trials", metavar="N", type=_positive_int, default=absent, help=f"trials to run{more}")
    parser.add_argument("--max-epochs", metavar="N", type=_positive_int, default=absent, help="epochs of a full trial")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive_float,
        dest="timeout_s",
        default=absent,
        help="stop after so long",
    )
    if not resume:
        parser.add_argument(
            "--trial-timeout",
            metavar="SECONDS",
            type=_positive_float,
            dest="trial_timeout_s",
            default=absent,
            help="cut a trial off whose define, or one epoch, takes longer",
        )
    parser.add_argument(
        "--max-total-epochs",
        metavar="N",
        type=_positive_int,
        default=absent,
        help="stop when all trials together have trained so many epochs",
    )
    parser.add_argument(
        "--target-value",
        metavar="VALUE",
        type=float,
        action="append",
        default=absent,
        help="stop when a finished trial is as good as this; once for each objective",
    )
    parser.add_argument(
        "--patience-trials",
        metavar="N",
        type=_positive_int,
        default=absent,
        help="stop after so many trials in a row without a better one",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", metavar="PATH", help="also write the HTML report to this file")
    _add_loudness(parser)


def _add_loudness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print progress and result as one JSON object per line")


def _positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, such as f1,auroc; got {text!r}")
    return names


def _port(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535; got {text!r}")
    return number


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0; got {text!r}")
    return number


def _library() -> Any:
    # The commands need the engine and with it torch; --help must not wait for that.
    return importlib.import_module("shoal")


def _load(spec: str) -> UserFile:
    known = [
        key for key in inspect.signature(_library().tune).parameters if key not in ("define", "train", "valid", "test")
    ]
    return load_user_file(spec, known)


def _load_study(arguments: argparse.Namespace) -> StudyRecord:
    record: StudyRecord = importlib.import_module("shoal.storage").load_study(arguments.study, arguments.study_name)
    return record


def _refuse_passwords(arguments: argparse.Namespace) -> None:
    """Everybody on a machine can read the command lines of its processes."""
    for name in ("storage", "study"):
        text = str(getattr(arguments, name, None) or "")
        if "://" in text and importlib.import_module("shoal.storage").has_password(text):
            raise UsageError(
                f"leave the password out of the command line ({'--storage' if name == 'storage' else 'STUDY'}), where everybody "
                "on this machine can read it: put it into PGPASSWORD or ~/.pgpass."
            )


# Options that are given once for each objective. One of them is one, and not a list of one.
_ONE_EACH: Final = ("metric", "direction", "target_value")


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among these that are on the command line, as keywords."""
    found = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {name: v[0] if name in _ONE_EACH and len(v) == 1 else v for name, v in found.items()}


def run_tune(arguments: argparse.Namespace) -> int:
    """``shoal tune``: the file's options, overridden by those of the command line."""
    if study_files.is_study(arguments.file):
        return _tune_study(arguments)
    if data_files.is_data(arguments.file):
        return _tune_data(arguments)
    data_files.refuse_options(arguments)
    user = _load(arguments.file)
    keywords: dict[str, Any] = {"storage": f"{user.path.stem}.db", **user.options}
    keywords.update(_given(arguments, _TUNE_KEYWORDS))
    keywords.update(_progress(arguments))
    study = _library().tune(user.define, train=user.train, valid=user.valid, test=user.test, **keywords)
    return _finish(study, keywords["storage"], arguments)


def run_resume(arguments: argparse.Namespace) -> int:
    """``shoal resume``: the study's own options; the file brings code and data with their preparation, no other options."""
    budget = ("n_trials", "max_epochs", "timeout_s", "max_total_epochs", "target_value", "patience_trials")
    keywords = _given(arguments, budget)
    if arguments.study_name is not None:
        keywords["study_name"] = arguments.study_name
    keywords.update(_progress(arguments))
    if study_files.is_study(arguments.file):
        study, tuned = study_files.resume(arguments.study, arguments, keywords)
        return _finish(study, arguments.study, arguments, tuned)
    if data_files.is_data(arguments.file):
        tuned = data_files.resume(arguments.study, arguments, keywords)
        return _finish(tuned.study, arguments.study, arguments, tuned)
    data_files.refuse_options(arguments)
    user = _load(arguments.file)
    if user.options.get("prepare") is not None:
        keywords["prepare"] = user.options["prepare"]
    study = _library().resume(
        arguments.study, user.define, train=user.train, valid=user.valid, test=user.test, **keywords
    )
    return _finish(study, arguments.study, arguments)


def _tune_data(arguments: argparse.Namespace) -> int:
    """``shoal tune`` on a data file or a folder."""
    keywords = _given(arguments, _TUNE_KEYWORDS)
    storage = keywords.setdefault("storage", data_files.study_name(arguments.file))
    keywords.update(_progress(arguments))
    ready = data_files.prepare(arguments, keywords.get("seed", 0))
    tuned = data_files.tune(ready, keywords)
    return _finish(tuned.study, storage, arguments, tuned)


def _tune_study(arguments: argparse.Namespace) -> int:
    """``shoal tune`` on a study file."""
    given = _given(arguments, _TUNE_KEYWORDS)
    ready = study_files.prepare(arguments, given)
    study, tuned = study_files.tune(ready, _progress(arguments))
    return _finish(study, ready.keywords["storage"], arguments, tuned)


def run_report(arguments: argparse.Namespace) -> int:
    """``shoal report``: reads the study file only."""
    from shoal.importances import importances
    from shoal.report import write_figures, write_report

    with stages_shown(_progress(arguments).get("progress", True), "reading the study"):
        record = _load_study(arguments)
        storage = importlib.import_module("shoal.storage")
        place = storage.place_of(arguments.study)
        path = arguments.output or storage.file_beside(place, record.name, ".html").name
        enter("weighing the hyperparameters")
        shares = importances(record)
        enter("writing the report")
        written = write_report(record, path, shares, title=storage.title_of(place, record.name))
        figures = write_figures(record, arguments.figures, shares) if arguments.figures else []
    if arguments.json:
        print(_json({"event": "result", "report": str(written), "figures": [str(figure) for figure in figures]}))
    else:
        print("\n".join(map(str, [written, *figures])))
    return 0


def run_watch(arguments: argparse.Namespace) -> int:
    """``shoal watch``: serves the page until Ctrl-C; reads the study file only."""
    from shoal.watching import PORT, LivePage, WatchServer

    page = LivePage(arguments.study, arguments.study_name)
    page.current()  # a file that cannot be shown is better refused here than in the browser
    with WatchServer(page, PORT if arguments.port is None else arguments.port) as server:
        try:
            print(server.url, flush=True)
            print("shoal: showing the study there; Ctrl-C stops", file=sys.stderr)
            if arguments.open:
                importlib.import_module("webbrowser").open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:  # the one way to end it
            return 0
    return 0


def run_best(arguments: argparse.Namespace) -> int:
    """``shoal best``: reads the study file only."""
    record = _load_study(arguments)
    facts = _best_facts(record)
    if facts is None and (told := _broken(record)):
        raise StudyError(told)
    if facts is None:
        raise StudyError(f"no trial of {arguments.study!r} has finished yet. Go on with it: shoal resume.")
    print(_json(facts) if arguments.json else _best_text(facts))
    return 0


def run_explain(arguments: argparse.Namespace) -> int:
    """``shoal explain``: what the planner would do, without training."""
    source: Any
    if study_files.is_study(arguments.file):
        ready = study_files.prepare(arguments, {})
        source = SimpleNamespace(define=ready.source.define, options=ready.keywords, **ready.splits)
    elif data_files.is_data(arguments.file):
        source = data_files.prepare(arguments, arguments.seed)
    else:
        data_files.refuse_options(arguments)
        source = _load(arguments.file)
    prepare = getattr(source, "options", {}).get("prepare")
    explanation = _library().explain(
        source.define,
        train=source.train,
        valid=source.valid,
        n_trials=arguments.n_trials,
        seed=arguments.seed,
        **({} if prepare is None else {"prepare": prepare}),
    )
    print(explanation)
    return 0


def run_finder(command: str, arguments: argparse.Namespace) -> int:
    """``shoal lr`` and its like: what of the file's options says how to measure is heeded."""
    if data_files.is_data(arguments.file):
        raise UsageError(f"shoal {command} takes FILE.py, not {arguments.file!r}.")
    return _finder_commands.run(command, arguments, _load(arguments.file))


def run_export(arguments: argparse.Namespace) -> int:
    """``shoal export``: reads the study file and the code that made it."""
    if arguments.study.endswith(".py"):
        raise UsageError("name the study first and the Python file second: shoal export STUDY FILE.py.")
    if data_files.is_data(arguments.file):
        raise UsageError(
            f"shoal export takes FILE.py, not {arguments.file!r}: a study of a data file has its model beside it (shoal predict)."
        )
    return _export_command.run_export(arguments, _load(arguments.file))


def run_completion(arguments: argparse.Namespace) -> int:
    """``shoal completion``: out of the parser itself."""
    print(completion_script(build_parser(), arguments.shell))
    return 0


def _progress(arguments: argparse.Namespace) -> dict[str, Any]:
    """``--json`` and ``--quiet`` together give the result as JSON and nothing else."""
    if arguments.quiet:
        return {"progress": False}
    return {"progress": "json"} if arguments.json else {}


def _finish(study: Any, storage: object, arguments: argparse.Namespace, tuned: Any = None) -> int:
    """Print what came out and where it lies; say how to go on when the study was interrupted."""
    record: StudyRecord = study.record
    report = None
    if arguments.report:
        with stages_shown(_progress(arguments).get("progress", True), "writing the report"):
            report = study.report(arguments.report)
    facts = _best_facts(record)
    if arguments.json:
        result: dict[str, Json] = {
            "event": "result",
            "interrupted": bool(study.interrupted),
            **(facts or {"trial": None}),
        }
        result.update({"study": _where(storage), "report": None if report is None else str(report)})
        if tuned is not None:
            result["model"] = _where(tuned.model_file)
            result["comparison"] = None if tuned.comparison is None else json_ready(tuned.comparison.scores)
            result["notes"] = list(tuned.notes)
        print(_json(result))
    else:
        none = "No trial has finished." if not (told := _broken(record)) else told[0].upper() + told[1:]
        lines = [none if facts is None else _best_text(facts)]
        lines.append(_row("study", _where(storage) or "in memory, gone when this program ends"))
        if report is not None:
            lines.append(_row("report", str(report)))
        if tuned is not None and tuned.model_file is not None:
            lines.append(_row("model", str(tuned.model_file)))
        if tuned is not None and tuned.comparison is not None:
            lines += ["", str(tuned.comparison)]
        print("\n".join(lines))
    if study.interrupted:
        stopped = "out of time" if getattr(study, "timed_out", False) else "interrupted"
    elif reason := getattr(study, "stop_reason", ""):
        stopped = f"stopped: {reason}"
    else:
        return 0
    if storage is None:
        print(f"shoal: {stopped}; without a study file it cannot go on.", file=sys.stderr)
    else:
        named = [] if record.name == "shoal" else ["--study-name", record.name]
        command = shlex.join(["shoal", "resume", str(_where(storage)), *data_files.again(arguments), *named])
        print(f"shoal: {stopped}; go on with: {command}", file=sys.stderr)
    # A limit is what the user asked for: running into it is no failure.
    if stopped != "interrupted":
        return 0
    return EXIT_TERMINATED if getattr(study, "terminated", False) else EXIT_INTERRUPTED


def _where(storage: object) -> str | None:
    shown: str | None = None if storage is None else importlib.import_module("shoal.storage").shown(storage)
    return shown


def _best_facts(record: StudyRecord) -> dict[str, Json] | None:
    best = record.best()
    if best is None:
        return None
    weights = record.meta.get("weights")
    several = {"front": [_member(record, t) for t in record.front()]} if len(record.directions) > 1 else {}
    kept = {"constraints": dict[str, Json](best.outcome.constraints)} if best.outcome.constraints else {}
    return {
        "trial": best.spec.number,
        "metric": str(record.meta.get("metric") or "value"),
        "value": best.value,
        "epoch": best.epoch,
        **_sureness(record),
        "valid": next((dict[str, Json](row.metrics) for row in best.rows if row.epoch == best.epoch), {}),
        "params": dict(best.spec.params),
        "test": record.meta.get("test") or None,
        "weights": weights.get(str(best.spec.number)) if isinstance(weights, Mapping) else None,
        **kept,
        **several,
    }


def _member(record: StudyRecord, trial: TrialRecord) -> Json:
    """A trial of the Pareto front."""
    values = dict[str, Json](zip(record.objectives, trial.values, strict=True))
    return {"trial": trial.spec.number, "values": values, "params": dict[str, Json](trial.spec.params)}


def _broken(record: StudyRecord) -> str:
    """What to say where all trials that could be best break a constraint; "" elsewhere."""
    n = broken_in(record.trials)
    bounds = record.meta.get("constraints")
    if not n or not isinstance(bounds, list):
        return ""
    return (
        f"each of the {n} trials breaks a constraint ({', '.join(map(str, bounds))}); run more trials, or allow more."
    )


def _sureness(record: StudyRecord) -> dict[str, Json]:
    """How far the best value may be off, where there are folds or seeds."""
    from shoal.optimism import optimism  # it works with NumPy, and --help must not wait for that

    known = optimism(record)
    if known is None:
        return {}
    corrected = known.corrected if known.n_trials > 1 else None
    found = {"standard_error": known.standard_error, "corrected": corrected}
    return {name: value for name, value in found.items() if value is not None}


def _front_rows(facts: Mapping[str, Any]) -> list[str]:
    """The Pareto front, one trial on a line, the best in the first objective first."""
    members = sorted(facts.get("front", ()), key=lambda m: m["trial"] != facts["trial"])
    rows = []
    for i, m in enumerate(members):
        values = ", ".join(f"{name} {format_value(value)}" for name, value in m["values"].items())
        rows.append(_row("front" if i == 0 else "", f"trial {m['trial']}: {values} ({format_params(m['params'])})"))
    return rows


def _best_text(facts: Mapping[str, Any]) -> str:
    label, of = (
        ("best trial", "")
        if "front" not in facts
        else ("shown", f", the one of the front with the best {facts['metric']}")
    )
    lines = [*_front_rows(facts), _row(label, f"{facts['trial']} (epoch {facts['epoch']}){of}")]
    # In full: this is where people copy parameters from.
    params = [f"{name} = {value!r}" for name, value in facts["params"].items()]
    lines += [_row("params" if i == 0 else "", text) for i, text in enumerate(params)]
    beside = {name: value for name, value in facts["valid"].items() if name != facts["metric"]}
    scores = [f"{facts['metric']} {format_number(facts['value'])}"]
    scores += [f"{name} {format_number(value)}" for name, value in beside.items()]
    if "standard_error" in facts:
        scores[0] += f" (standard error {format_param(facts['standard_error'])})"
    lines.append(_row("validation", ", ".join(scores)))
    if "corrected" in facts:
        said = f"{facts['metric']} {format_number(facts['corrected'])} (the luck of the best taken off, by bootstrap over folds)"
        lines.append(_row("expected", said))
    if facts["test"]:
        lines.append(_row("test", ", ".join(f"{name} {format_param(value)}" for name, value in facts["test"].items())))
    if "constraints" in facts:
        lines.append(_row("keeps", ", ".join(facts["constraints"])))
    if facts["weights"]:
        lines.append(_row("weights", str(facts["weights"])))
    return "\n".join(lines)


def _row(label: str, text: str) -> str:
    return f"{label:<12}{text}"


def _json(facts: Mapping[str, Json]) -> str:
    return json.dumps(json_ready(facts), allow_nan=False)
