"""The lower bound of ε through the clip and the noise of a run: quiet for what they should be, an alarm for faults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shepherd.errors import UsageError
from shepherd.experiment import audit_release
from shepherd.experiment.audit import AuditOptions, audit_run
from shepherd.experiment.audit_release import attack_release
from shepherd.updates.privacy.client_level import ClientLevel


class AQuarterOfTheNoise(ClientLevel):
    @property
    def update_noise(self) -> float:
        return self.noise_multiplier / 4


def mechanism(kind=ClientLevel, **changes):
    usual = {"noise_multiplier": 1.0, "clip": 0.3, "delta": 1e-3, "repeatable": 7}
    return kind(tuple(f"client-{i}" for i in range(20)), 0.25, **{**usual, **changes})


def attacked(of):
    return attack_release(of, 0, lambda line: None, releases=1000)


@pytest.mark.parametrize("changes", [{}, {"clip": 5.0, "noise_multiplier": 2.0}])
def test_honest_noise_stays_below_the_epsilon_that_it_stands_for(changes):
    found = attacked(mechanism(**changes))
    assert found["alarm"] is False and 0 < found["lower_bound"] <= found["claimed"]
    assert found["estimate"] == pytest.approx(found["claimed"], rel=0.1)


def test_a_quarter_of_the_noise_sets_the_alarm_off():
    assert attacked(mechanism(AQuarterOfTheNoise))["alarm"] is True


def test_an_update_that_is_not_clipped_sets_the_alarm_off(monkeypatch):
    monkeypatch.setattr(audit_release, "clipped", lambda update, limit: update)
    assert attacked(mechanism())["alarm"] is True


def test_noise_that_is_divided_by_the_cohort_twice_sets_the_alarm_off(monkeypatch):
    plus = audit_release.Contributions.plus
    divided = lambda given, name, start, delta, weight: plus(given, name, start, delta, weight / 5)  # noqa: E731
    monkeypatch.setattr(audit_release.Contributions, "plus", divided)
    assert attacked(mechanism())["alarm"] is True


def test_a_run_without_noise_has_no_release_to_attack():
    for none in (None, replace(mechanism(), noise_multiplier=0.0)):
        with pytest.raises(UsageError, match="no client-level differential privacy with noise"):
            attacked(none)


def test_a_private_run_is_audited_by_its_adapter_with_epsilon_beside_it(run_small):
    path = run_small(
        "partition.name=iid", "partition.clients=10", "selection.name=poisson", "federation.clients_per_round=4",
        "federation.weights=uniform", "federation.quarantine_after=0",
        "federation.on_too_few=skip", "federation.rounds=1", "privacy.unit=client", "privacy.clip=0.1",
        "privacy.noise_multiplier=1", "privacy.delta=0.01", "evaluation.arms=base,federated", "evaluation.generate=0",
        "data.rows_per_category=10", "privacy.audit.canaries=2", "privacy.audit.copies=[0,2]",
        "federation.method=ffa_lora",
    ).path  # fmt: skip
    found = audit_run(path, ["exposure", "tokens", "release"], AuditOptions(candidates=20, releases=1000))
    assert found["privacy"]["epsilon"] > 0 and found["privacy"]["delta"] == 0.01
    assert found["release"]["alarm"] is False and found["release"]["noise_multiplier"] == 1.0
    assert found["tokens"]["replayed_exactly"] in (True, None) and found["tokens"]["attacked"] == "ΔB"
    page = (path / "report.html").read_text()
    assert "it did not go off" in page and "Differential privacy of this run: ε = " in page
