"""A pytest plugin beside nbval: a notebook of which almost nothing was compared fails (``pytest -p
lab.site.nbval_guard --nbval …``).

nbval passes notebooks without outputs, with ignored cells, or under ``--nbval-lax``, and compares
no PNG. This counts the outputs that it really compared, notebook by notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

LEAST = 3
"""Outputs of each notebook that have to be compared."""


class Guard:
    """Counts what `IPyNbCell.compare_outputs` is given; the session fails where that is
    too little.
    """

    def __init__(self) -> None:
        self.compared: dict[str, int] = {}

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        from nbval.plugin import IPyNbCell

        for item in items:
            if isinstance(item, IPyNbCell):
                self.compared.setdefault(item.parent.name, 0)
                item.compare_outputs = self._counting(item, item.compare_outputs)

    def _counting(self, item, compare):
        def counted(test, ref, skip_compare=None):
            skip = skip_compare or item.parent.skip_compare
            self.compared[item.parent.name] += sum(comparable(output, skip) for output in ref)
            return compare(test, ref, skip_compare)

        return counted

    def too_little(self) -> dict[str, int]:
        return {name: n for name, n in self.compared.items() if n < LEAST}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and (self.too_little() or not self.compared):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        for name, n in self.compared.items():
            few = (
                f"  TOO FEW, at least {LEAST} are needed: did it lose its outputs?"
                if n < LEAST
                else ""
            )
            terminalreporter.write_line(f"{name:<32} {n:>3} outputs compared{few}")
        if not self.compared:
            terminalreporter.write_line(
                "no notebook was compared: is --nbval missing, or the folder empty?"
            )


def comparable(output: Mapping, skip: Sequence[str]) -> bool:
    """Whether nbval compares anything of an output: a stream's text, an error's name, or a
    representation it does not skip.
    """
    return any(key not in skip for key in output.get("data", {})) or any(
        key not in skip and key != "data" for key in output
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Guard(), "cclkit-nbval-guard")
