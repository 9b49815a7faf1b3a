"""The monitoring kit: checked by the tools it is for, and against what the daemon really serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from watcher.figures import Figures, Tally
from watcher.metrics import Metrics
from watcher.records import Decision, Filed, Order, Outcome, Timing

KIT = Path(__file__).parents[1] / "docs" / "monitoring"
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not there")


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=KIT)


def queries() -> dict[str, str]:
    """Every PromQL expression of alerts and dashboard, Grafana's variables filled in."""
    rules = yaml.safe_load((KIT / "alerts.yml").read_text())["groups"][0]["rules"]
    found = {rule["alert"]: rule["expr"] for rule in rules}
    for panel in json.loads((KIT / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            filled = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = filled
    return found


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
)
def test_promtool(words: tuple[str, ...]) -> None:
    """The rules are valid, each of those tested fires when it should and only then, and the scrape config is valid."""
    ended = tool("promtool", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    """Those of the dashboard too."""
    rules = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries().values())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    ended = tool("promtool", "check", "rules", str(tmp_path / "rules.yml"))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_metric_asked_for_is_served() -> None:
    """No alert and no panel asks for a name that the daemon does not have."""
    tally = Tally()
    order = Order("a", None, None, Decision(Outcome.SORTED, "CXR", 0.9), Timing(0.0))
    tally.record(Filed(order, "/a"), 1.0)
    bad = Order("b", None, None, Decision(Outcome.QUARANTINE, None, 0.0, "empty"), Timing(0.0))
    tally.record(Filed(bad, "/b"), 1.0)
    disk = {"backlog_files": {"review": 1.0}, "disk_free_bytes": {"inbox": 1.0}}
    metrics = Metrics(lambda: {"model": "m"}, tally, lambda: disk)
    metrics.observe(Figures(1, tally.all_lives, 0, 0, True))
    served = {sample.name for family in metrics.collect() for sample in family.samples}
    asked = {name for query in queries().values() for name in re.findall(r"\bmednet_[a-z_]+", query)}
    assert asked
    assert asked <= served


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not there")
def test_logrotate_takes_its_config(tmp_path: Path) -> None:
    """A dry run finds nothing wrong (the service's user is not here, so another stands in)."""
    config = tmp_path / "logrotate.conf"
    config.write_text((KIT / "logrotate.conf").read_text().replace("mednet-watcher mednet-watcher", "root root"))
    ended = tool("logrotate", "--debug", "--state", str(tmp_path / "state"), str(config))
    assert (ended.returncode, "error" in ended.stderr.lower()) == (0, False), ended.stderr


def test_vector_says_that_it_was_not_run() -> None:
    """As long as nobody has."""
    assert "NOT RUN" in (KIT / "vector.yaml").read_text()
    assert yaml.safe_load((KIT / "vector.yaml").read_text())["sources"]
