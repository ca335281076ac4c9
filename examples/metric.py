"""A metric of generated answers, measured in a run and shown in its report.

python examples/metric.py
"""

import shepherd


# A metric sees one answer at a time, beside the reference, and not which model gave it.
# Its label, direction and bounds are what the tables of the report need.
@shepherd.metrics
def right_length(tolerance: float = 0.5):
    """1 when the answer has the reference's number of words, up to a share `tolerance` of it, else 0."""

    def score(answer: shepherd.Answer) -> float:
        wanted = len(answer.reference.split())
        return float(abs(len(answer.text.split()) - wanted) <= tolerance * wanted)

    return shepherd.Metric(score, higher_is_better=True, label="Right length", bounds=(0.0, 1.0))


# Keyword arguments are tables of the recipe; here two arms, 8 answers each, and two metrics, one with an option.
config = shepherd.load_config(
    "demo",
    run={"name": "metric"},
    evaluation={
        "arms": ["base", "federated"],
        "generate": 8,
        "metrics": ["rouge_l", {"name": "right_length", "tolerance": 0.3}],
    },
)
run = shepherd.run(config)
for arm, numbers in run.metrics["arms"].items():
    print(f"{arm:>9}:", {name: round(value, 3) for name, value in numbers["generation"].items()})
print("report:", run.path / "report.html")
