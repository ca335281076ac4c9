"""All methods by name, with variants for the tests of their properties."""

from __future__ import annotations

from shepherd.server.methods import build_method, methods

# Methods whose preset truncates by energy, here without; and variants that deserve a separate row.
VARIANTS = {
    "fedmomentum, all energy": ("fedmomentum", {"energy": 1.0}),
    "florist, all energy": ("florist", {"energy": 1.0}),
    "ffa_lora, orthonormal": ("ffa_lora", {"start": "orthonormal"}),
    "flexlora, common scale": ("flexlora", {"scale": "common"}),
    "fedrot_lora, whole rotation": ("fedrot_lora", {"strength": 1.0}),
    "ravan, two heads": ("ravan", {"heads": 2}),
    "fedex_lora, rank 2": ("fedex_lora", {"rank": 2}),
}
GLOBAL = [name for name in methods if not methods.build(name).pieces.personal]
"""Methods that train the global model; the others train personal models."""
ALL = {**{name: (name, {}) for name in GLOBAL}, **VARIANTS}


def of(name: str):
    return build_method(*ALL[name])


CUT = {name for name, (method, options) in ALL.items() if build_method(method, options).pieces.remainder.energy < 1}
UNCUT = sorted(ALL.keys() - CUT)
