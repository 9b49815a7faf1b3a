"""The monitoring kit: checked by the tools it is for, and against what the daemon really serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from numpy.random import default_rng

from tests.support.daemon import Daemon
from tests.support.dropped_files import picture
from tests.support.repository import TOP
from tests.support.waiting import LONGEST_S
from watcher.core.records import Decision, Filed, MoveOrder, Outcome, Timing
from watcher.monitoring.counters import Counters, Totals
from watcher.monitoring.metrics import Metrics

KIT = TOP / "docs" / "monitoring"
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not there")


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False, cwd=KIT)


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


def test_every_alert_is_tried() -> None:
    """None is without a test of its own."""
    rules = yaml.safe_load((KIT / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((KIT / "alerts_test.yml").read_text())["tests"]
    tried = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert tried == {rule["alert"] for rule in rules}


@needs_promtool
def test_every_query_is_promql(tmp_path: Path) -> None:
    """Those of the dashboard too."""
    rules = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries().values())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    ended = tool("promtool", "check", "rules", str(tmp_path / "rules.yml"))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_metric_asked_for_is_served() -> None:
    """No alert and no panel asks for a name that the daemon does not have."""
    tally = Counters()
    order = MoveOrder("a", None, None, Decision(Outcome.SORTED, "CXR", 0.9), Timing(0.0))
    tally.record(Filed(order, "/a"), 1.0)
    bad = MoveOrder("b", None, None, Decision(Outcome.QUARANTINE, None, 0.0, "empty"), Timing(0.0))
    tally.record(Filed(bad, "/b"), 1.0)
    disk = {"backlog_files": {"review": 1.0}, "disk_free_bytes": {"inbox": 1.0}}
    tally.drift.compare(0.0)
    metrics = Metrics(lambda: {"model": "m"}, tally, lambda: disk)
    metrics.observe(Totals(1, tally.all_lives, 0, 0, True))
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


class TestVector:
    @pytest.fixture
    def file(self) -> dict[str, Any]:
        return yaml.safe_load((KIT / "vector.yaml").read_text())

    def test_says_that_it_was_not_run(self) -> None:
        """As long as nobody has."""
        assert "NOT RUN" in (KIT / "vector.yaml").read_text()

    def test_nothing_leads_nowhere(self, file: dict[str, Any]) -> None:
        """Every input is there, and every output is taken by somebody: what is dropped, too."""
        made = {*file["sources"], *file["transforms"]}
        made |= {f"{name}.dropped" for name, what in file["transforms"].items() if what.get("reroute_dropped")}
        taken = {name for what in (*file["transforms"].values(), *file["sinks"].values()) for name in what["inputs"]}
        assert made == taken

    def test_its_programs_on_what_the_daemon_writes(self, file: dict[str, Any], tmp_path: Path) -> None:
        """Each line is taken apart whole, its host kept; people get what needs them; a stack trace is dropped."""
        vrl = pytest.importorskip("vrl_python", reason="vrl-python (PyPI) is not there").VRLRuntime
        program, condition = file["transforms"]["lines"]["source"], file["transforms"]["for_people"]["condition"]
        with Daemon(tmp_path, stub=True) as daemon:
            (daemon.inbox / "good.jpeg").write_bytes(picture(default_rng(200)))
            (daemon.inbox / "bad.jpeg").write_bytes(b"no image")
            daemon.until_filed(2)
            assert daemon.stop() == 0
        for_people = []
        for line in daemon.log.read_text().splitlines():
            event = {"message": line, "host": "pacs-1", "PRIORITY": "6"}
            found = vrl.run(program, event, "UTC").processed_event
            told = json.loads(line)
            assert found.pop("host") == "pacs-1"
            assert found.pop("timestamp")
            assert found == {key: value for key, value in told.items() if key != "timestamp"}
            if vrl.run(condition, found, "UTC").runtime_result:
                for_people.append(told["event"])
        assert for_people == ["image.quarantined"]
        with pytest.raises(Exception, match="parse_json"):
            vrl.run(program, {"message": "Fatal Python error: Aborted"}, "UTC")
