"""A site's policy in words, for its operator: one line for each thing that it limits."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.errors import plural
from shepherd.federation.cards import Policy


def policy_words(policy: Policy) -> tuple[tuple[str, str], ...]:
    """(what, the limit) of a policy, in the order of `site.toml`."""
    small = f"; fewer than {policy.min_rows_tell} are stated as {policy.min_rows_tell}" if policy.min_rows_tell else ""
    asks = policy.approve == "ask"
    return (
        ("Approval", "a person approves each run" if asks else "a run that the policy allows needs no person"),
        ("Base model", _names(policy.bases, "the one that is here")),
        ("Methods", _names(policy.methods, "every built-in one")),
        ("Personal models", _names(policy.personalizations, "every built-in method")),
        ("Transforms of updates", _names(policy.transforms, "every built-in one")),
        (
            "Size of a run",
            f"at most {plural(policy.max_rounds, 'round')} and {plural(policy.max_local_steps, 'step')} in each, "
            f"{plural(policy.max_parameters, 'trainable number')}, messages of {policy.max_message_mib} MiB, "
            f"a learning rate of {policy.max_learning_rate:g}",
        ),
        (
            "Rows",
            f"takes part with at least {policy.min_rows:,}{small}; between {policy.min_rows_round:,} and "
            f"{policy.max_rows:,} go through a round",
        ),
        (
            "Repeated looks at the rows",
            f"at most {plural(policy.max_runs, 'run')}, and in each {plural(policy.max_trainings, 'training')} and "
            f"{plural(policy.max_measures, 'measure')}",
        ),
        (
            "Losses",
            f"of at least {plural(policy.least_group, 'row')} together, names of categories "
            + ("with them" if policy.categories == "shown" else "stay here"),
        ),
        ("Other sites", f"no round with fewer than {plural(policy.least_cohort, 'site')}"),
        ("Protections", _names(policy.require, "none is required")),
        ("Privacy", _privacy(policy)),
        ("Hours", policy.window or "always"),
    )


def _privacy(policy: Policy) -> str:
    limits = [f"{name} of at most {most:g}" for name, most in
              (("epsilon", policy.epsilon_max), ("delta", policy.delta_max)) if most]  # fmt: skip
    return f"in a private run {' and '.join(limits)}, as this site computes it" if limits else "no limit of epsilon"


def _names(names: Sequence[str], none: str) -> str:
    return ", ".join(names) if names else none
