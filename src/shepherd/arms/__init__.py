"""The arms of a comparison: their names, words and order, and how each baseline is trained. Loads no PyTorch.

In: a `Setup`, with the rows and the budget of a run. Out: what its `train_one` or `train_each` returns. `arm.py` is the
noun and the registry. Add an arm as a file with a factory, and its import below; a program outside registers one with
`@arms`, or names it `module:function` in evaluation.arms.
"""

from shepherd.arms import base, centralised, federated, local  # noqa: F401  their factories are registered
from shepherd.arms.arm import COMPARED, Arm, Row, Setup, arm_named, arms, in_order, parts_of, registered, shown

__all__ = ["COMPARED", "Arm", "Row", "Setup", "arm_named", "arms", "in_order", "parts_of", "registered", "shown"]
