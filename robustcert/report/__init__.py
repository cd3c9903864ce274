"""Results for people to read: ``python -m robustcert.report DIR...``.

One run, or its certificate folder, becomes a page on what its certificate is worth; several runs,
or a sweep, become a table, pictures and a page that compares them. One file each:

* ``runs`` finds runs and tells how far each one got, ``summary`` groups them over seeds;
* ``claim`` reads a certificate folder with the reader of the independent checker;
* ``measures``, ``separation`` and ``calibration`` compute what the page of one run states;
* ``regression`` reads, draws and writes those of a regression;
* ``sweep_figures`` and ``run_figures`` draw, ``sweep_page`` and ``run_page`` write.

Pages are single files that need no network. The same folders give the same bytes.
"""

from robustcert.errors import ReportError

__all__ = ["ReportError"]
