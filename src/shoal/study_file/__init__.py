"""``study.toml``: a study as a file, without code. Read, checked, run; its template and its JSON schema."""

from __future__ import annotations

from shoal.study_file._keys import KEYS, Key
from shoal.study_file._read import StudyFile, is_study_file, read_study_file
from shoal.study_file._ready import ReadyStudy, prepare_study, resume_study, tune_study
from shoal.study_file._schema import json_schema
from shoal.study_file._summary import summary
from shoal.study_file._template import template

__all__ = [
    "KEYS",
    "Key",
    "ReadyStudy",
    "StudyFile",
    "is_study_file",
    "json_schema",
    "prepare_study",
    "read_study_file",
    "resume_study",
    "summary",
    "template",
    "tune_study",
]
