"""What a run prepares of a config, one by one."""

from __future__ import annotations

from typing import Any

from shepherd.config import Config
from shepherd.experiment.method import compose
from shepherd.experiment.plan import prepare_plan
from shepherd.experiment.rows import FederatedData
from shepherd.experiment.schedule import prepare_schedule
from shepherd.experiment.trainer import Trainer, prepare_trainer
from shepherd.round import Plan


def plan_of(config: Config, data: FederatedData) -> Plan:
    return prepare_plan(config, compose(config), data.sizes, prepare_schedule(config), data.partition.labels)


def trainer_of(config: Config, base: Any) -> Trainer:
    return prepare_trainer(config, compose(config), base)
