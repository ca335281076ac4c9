"""Rows of your own, each client with its own rows.

python examples/own_data.py
"""

import shepherd

# Any of the formats in docs/data.md. A list of rows without clients is divided by `clients=` or `partition=`.
rows = {
    "Anna's kitchen": [
        {"instruction": "How long do I boil an egg?", "response": "Six minutes for a soft yolk, ten for a hard one."},
        {"instruction": "What goes with lamb?", "response": "Rosemary, garlic and roast potatoes."},
        {
            "instruction": "How do I keep bread fresh?",
            "response": "In a linen bag, cut side down, never in the fridge.",
        },
    ],
    "Ben's farm": [
        {"instruction": "When are sheep shorn?", "response": "Once a year, in late spring, before the heat."},
        {"instruction": "How much hay does a sheep eat?", "response": "About two kilograms a day in winter."},
        {"instruction": "What does a sheepdog do?", "response": "It gathers the flock and keeps it together."},
        {"instruction": "Why do lambs need colostrum?", "response": "It has antibodies that they are born without."},
    ],
}
held_out = [
    {"instruction": "How do I cook rice?", "response": "One part rice, two parts water, twelve minutes on low heat."},
    {"instruction": "What do sheep eat?", "response": "Grass in summer, hay in winter."},
]

federation = shepherd.simulate(
    rows, held_out=held_out, base="smollm2-135m", rounds=3, local_steps=2, learning_rate=1e-3
)
print("clients:", federation.clients)  # names that are safe for paths, and their rows
print(f"base: held-out loss {federation.base.loss:.3f}")
for r in federation:
    by_client = ", ".join(f"{client} {loss:.3f}" for client, loss in r.losses.items())
    print(f"round {r.number}: held-out loss {r.evaluate().loss:.3f}, training loss {by_client}")
print("saved:", r.save("own-adapter"))  # a PEFT folder
