"""Clients that are mostly, but not only, of one kind: a partitioner.

python examples/partitioner.py
"""

from collections import Counter

import shepherd


# The arguments of the function are its options. It returns the rule: rows in, {client's name: ids of its rows} out.
# All randomness comes from `rng`, so the same seed divides the same way on every machine.
@shepherd.partitioners
def specialists(mixed: float = 0.2):
    """A client for each category, with a share `mixed` of all rows divided at random: 0 is by_key, 1 is iid."""

    def partition(examples, clients, rng):
        categories = sorted({example.category for example in examples})
        clients = clients or len(categories)  # 0 leaves the number to the partitioner
        rows = {f"client {k}": [] for k in range(1, clients + 1)}
        for example in examples:
            at_random = rng.random() < mixed
            k = rng.integers(clients) if at_random else categories.index(example.category) % clients
            rows[f"client {k + 1}"].append(example.id)
        return rows

    return partition


# Without a model: the rows of each client, and how many of them are of its most frequent category.
dataset = shepherd.load_dataset("builtin:instructions")
category = {example.id: example.category for example in dataset.examples}
for mixed in (0.0, 0.2, 1.0):
    divided = shepherd.partition(dataset, "specialists", mixed=mixed)
    most = [Counter(category[row] for row in rows).most_common(1)[0][1] for rows in divided.clients.values()]
    print(f"mixed {mixed}:", *(f"{n}/{len(rows)}" for n, rows in zip(most, divided.clients.values(), strict=True)))

# And in a federation, by the same name.
federation = shepherd.simulate(recipe="demo", clients=4, partition={"name": "specialists", "mixed": 0.5}, rounds=2)
print("clients:", federation.clients)
print("held-out loss:", f"{federation.base.loss:.3f}", *(f"{r.evaluate().loss:.3f}" for r in federation))
