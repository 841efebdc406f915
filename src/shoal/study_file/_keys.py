"""Every key that a study file may have: the one table that reading, the JSON schema and the template are made from.

A key has the name of the Python keyword that it sets. Where something is searched over (``model``, ``space``, ``extensions``,
``enqueue``) and for the options of a sampler, names are free, and are checked by those who take them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from shoal.records import Json

Source: TypeAlias = Literal["code", "table", "folder"]
ANY: Final[tuple[Source, ...]] = ("code", "table", "folder")
DATA: Final[tuple[Source, ...]] = ("table", "folder")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be: in words, as JSON schema, and as types of Python.

    ``low`` is the least number; ``below``, if given, one that it must stay under; ``above`` whether `low` itself is too little.
    """

    words: str
    schema: Mapping[str, Json]
    types: tuple[type, ...]
    low: float | None = None
    above: bool = False
    below: float | None = None
    many: bool = False

    def fits(self, value: object) -> bool:
        """Whether a value is one of these."""
        if self.many and isinstance(value, list):
            return bool(value) and all(self._fits(entry) for entry in value)
        return self._fits(value)

    def _fits(self, value: object) -> bool:
        if isinstance(value, bool) and bool not in self.types:
            return False
        if not isinstance(value, self.types):
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        if self.low is not None and not (value > self.low if self.above else value >= self.low):
            return False
        return abs(value) < float("inf") and (self.below is None or value < self.below)


def _texts(words: str) -> Kind:
    one: Json = {"type": "string"}
    either: Mapping[str, Json] = {"oneOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    return Kind(words, either, (str,), many=True)


TEXT: Final = Kind("text in quotes", {"type": "string", "minLength": 1}, (str,))
TEXTS: Final = _texts("text in quotes, or a list of texts")
FLAG: Final = Kind("true or false", {"type": "boolean"}, (bool,))
COUNT: Final = Kind("a whole number of at least 1", {"type": "integer", "minimum": 1}, (int,), low=1)
FOLDS: Final = Kind("a whole number of at least 2", {"type": "integer", "minimum": 2}, (int,), low=2)
SEED: Final = Kind("a whole number of at least 0", {"type": "integer", "minimum": 0}, (int,), low=0)
NUMBERS: Final = Kind(
    "a finite number, or a list of numbers",
    {"oneOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]},
    (int, float),
    many=True,
)
SECONDS: Final = Kind(
    "a number of seconds above 0", {"type": "number", "exclusiveMinimum": 0}, (int, float), low=0, above=True
)
FRACTION: Final = Kind(
    "a fraction above 0 and below 0.5",
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    (float,),
    low=0,
    above=True,
    below=0.5,
)


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        section: The table that it stands in.
        name: Its own name, and that of the Python keyword.
        kind: What its value may be.
        help: What it means, for people.
        example: Its line in the template, as TOML.
        choices: The only values it may have, if so.
        sources: What kinds of data it makes sense for.
        sets: The Python keyword that it sets, where that has another name.
    """

    section: str
    name: str
    kind: Kind
    help: str
    example: str
    choices: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ANY
    sets: str = ""

    @property
    def keyword(self) -> str:
        """The Python keyword that it sets."""
        return self.sets or self.name

    @property
    def schema(self) -> dict[str, Json]:
        """As JSON schema."""
        limits: dict[str, Json] = {"enum": list(self.choices)} if self.choices else dict(self.kind.schema)
        if self.choices and self.kind.many:
            limits = {"oneOf": [dict(limits), {"type": "array", "items": dict(limits), "minItems": 1}]}
        return {"description": self.help, **limits}


KEYS: Final[tuple[Key, ...]] = (
    Key(
        "data",
        "file",
        TEXT,
        "CSV or Parquet file, or a folder of class-named folders",
        '"data.csv"',
        sources=DATA,
        sets="data",
    ),
    Key(
        "data",
        "code",
        TEXT,
        "instead of file: FILE.py[:define] with define(trial) and data()",
        '"study.py"',
        sources=("code",),
        sets="define",
    ),
    Key(
        "data",
        "target",
        TEXTS,
        "column to predict; a list for several labels or numbers",
        '"target"',
        sources=("table",),
    ),
    Key(
        "data",
        "task",
        TEXT,
        "what the target is; by default what its values suggest",
        '"classes"',
        ("classes", "labels", "numbers"),
        ("table",),
    ),
    Key("data", "group", TEXT, "column whose equal values stay in one part", '"household"', sources=("table",)),
    Key(
        "data",
        "time",
        TEXT,
        "column to order the rows by: train on the first, test on the last",
        '"date"',
        sources=("table",),
    ),
    Key("data", "ignore", TEXTS, "columns that are no inputs", '["id"]', sources=("table",)),
    Key("data", "valid", FRACTION, "fraction of the rows that trials are judged by", "0.2", sources=("table", "code")),
    Key(
        "data", "test", FRACTION, "fraction of the rows that the winner is tested on", "0.2", sources=("table", "code")
    ),
    Key("data", "hyper_valid", FRACTION, "fraction of the training rows that extensions take their gradient on", "0.1"),
    Key(
        "sampler",
        "name",
        TEXT,
        "how parameters are chosen; other keys of this table are its options",
        '"tpe"',
        sets="sampler",
    ),
    Key(
        "scheduler",
        "name",
        TEXT,
        "which trials are stopped early; other keys of this table are its options",
        '"asha"',
        sets="scheduler",
    ),
    Key("metrics", "metric", TEXTS, "what trials are judged by; a list for several objectives", '"accuracy"'),
    Key(
        "metrics",
        "direction",
        TEXTS,
        "which way is better, one for each metric; follows from a named metric",
        '"maximize"',
        ("minimize", "maximize"),
    ),
    Key("metrics", "constraints", TEXTS, "bounds that the best must keep", '["n_parameters <= 100000"]'),
    Key("metrics", "metrics", TEXTS, "further metrics to record", '["f1"]'),
    Key("metrics", "value", TEXT, "which epoch a trial is judged by", '"best"', ("last", "best")),
    Key("metrics", "folds", FOLDS, "cross-validate trials on so many folds", "5", sources=("code",)),
    Key("metrics", "seeds", COUNT, "train each trial under so many seeds", "1"),
    Key("budget", "n_trials", COUNT, "trials in all", "100"),
    Key("budget", "max_epochs", COUNT, "epochs of a trial that is not stopped early", "30"),
    Key("budget", "timeout_s", SECONDS, "start no further epoch after so many seconds", "60"),
    Key("budget", "trial_timeout_s", SECONDS, "cut off a define, or an epoch of a trial, that takes longer", "30"),
    Key("budget", "max_total_epochs", COUNT, "stop once all trials together have trained so many epochs", "1000"),
    Key("budget", "target_value", NUMBERS, "stop once a finished trial is as good as this", "0.99"),
    Key("budget", "patience_trials", COUNT, "stop after so many trials in a row without a better one", "50"),
    Key("study", "storage", TEXT, "the study file; by default this file's name with .db", '"study.db"'),
    Key("study", "study_name", TEXT, "its name, if the storage holds several", '"shoal"'),
    Key("study", "warm_start", TEXT, "an earlier study's file for the sampler to learn from", '"earlier.db"'),
    Key("study", "seed", SEED, "everything random follows from it", "0"),
    Key("study", "device", TEXT, "auto, cpu, cuda, ...", '"auto"'),
    Key("study", "reproducible", FLAG, "never choose by measured time, and train in one process", "false"),
    Key("study", "baselines", FLAG, "fit scikit-learn's models as well", "true", sources=DATA),
    Key("study", "progress", FLAG, "show progress", "true"),
)

# Tables whose names are free: what stands in them, and the Python keyword that they go to.
FREE: Final[Mapping[str, tuple[str, str]]] = {
    "model": (
        "what is fixed: keywords of shoal.nn.mlp (tables, texts) or shoal.nn.cnn (images), of its optimizer, and batch_size",
        "space",
    ),
    "space": ("what is searched: a list is a choice, {low = ..., high = ..., log = true} a range", "space"),
    "extensions": (
        "hyperparameters that move while the model trains: [extensions.NAME] for each, values as under [space]",
        "space",
    ),
    "enqueue": ("parameters to try first, one [[enqueue]] per trial", "enqueue"),
}
OPTIONS: Final = ("sampler", "scheduler")  # sections whose further keys are options
SECTIONS: Final = tuple(
    dict.fromkeys([*("data", "model", "space", "extensions"), *(key.section for key in KEYS), "enqueue"])
)


def keys_of(section: str) -> dict[str, Key]:
    """The keys of a section by name."""
    return {key.name: key for key in KEYS if key.section == section}


def home_of(name: str) -> str:
    """Where a key belongs that stands somewhere else: ``" 'seed' belongs under [study]."``, or ""."""
    sections = [f"[{key.section}]" for key in KEYS if key.name == name and key.name != "name"]
    if sections:
        return f" {name!r} belongs under {sections[0]}."
    close = difflib.get_close_matches(name, [key.name for key in KEYS if key.name != "name"], n=1)
    return f" Did you mean {close[0]!r} under {home_of(close[0]).rsplit(' ', 1)[1][:-1]}?" if close else ""
