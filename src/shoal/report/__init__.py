"""The report: one HTML file that anyone can open, mail or archive, with nothing to install and nothing to download.

It reads results only: a `StudyRecord` goes in, a file comes out. The same figures can be had as PNG and SVG.
"""

from __future__ import annotations

from shoal.report._axes import BEST, COLOURS, DASHES
from shoal.report._figures import STYLE, write_figures
from shoal.report._page import render_report, write_report

__all__ = ["BEST", "COLOURS", "DASHES", "STYLE", "render_report", "write_figures", "write_report"]
