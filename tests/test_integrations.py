"""What all adapters have in common: nobody pays for one who does not use it, and their workers may be killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .probes.agents import FRAMEWORKS, kill_agents
from .support.amounts import KILLED_AGENTS
from .support.patience import PATIENCE_S

ON_NEWEST = True
EXTRAS = {"pydantic_ai": "pydantic-ai", "openai_agents": "openai-agents"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_killed_agents_do_and_ask_nothing_twice(database: str, framework: str) -> None:
    """SIGKILL at any moment: each effect once, what was ambiguous decided by a person, no recorded question again."""
    found, figures = kill_agents(database, framework, KILLED_AGENTS.test, seed=7)
    assert found == [] and figures["kills"] >= KILLED_AGENTS.test


def test_no_adapter_is_imported_unasked_and_each_names_its_extra() -> None:
    code = f"""
import sys
import tidebase
frameworks = {{"pydantic_ai", "agents", "httpx", "pydantic"}}
assert not any(name.startswith("tidebase.integrations") for name in sys.modules)
assert not frameworks & set(sys.modules), frameworks & set(sys.modules)
for name, extra in {EXTRAS!r}.items():
    for framework in frameworks:
        sys.modules[framework] = None
    try:
        __import__(f"tidebase.integrations.{{name}}")
    except ImportError as error:
        assert f"tidebase-postgres[{{extra}}]" in str(error), error
    else:
        raise AssertionError(name)
import tidebase.integrations.http
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
